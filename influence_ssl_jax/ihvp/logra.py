"""LoGra: every layer's gradient projected on both sides, its projected curvature inverted exactly."""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.moments import curvature_moments, side_moments
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp.backend import Backend, Form, Resolved, gram_of_features
from influence_ssl_jax.linalg.projection import leading_eigenvectors, random_basis
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

Bases: TypeAlias = dict[str, tuple[Array, ...]]
Features: TypeAlias = dict[str, Float[Array, "n features"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoGraState:
    """Per block: `Bᵀ C B = V diag(μ) Vᵀ` in a basis B = B_in ⊗ B_out.

    Attributes:
        params: Gives vectors their structure.
        bases: (B_in, B_out) of a weight matrix, per group; (B,) of a vector.
        eigenvalues: μ.
        eigenvectors: V.
        mean: tr(C)/P of the block itself, before projection.
        blocks: The layers.
    """

    params: Params
    bases: Bases
    eigenvalues: dict[str, Array]
    eigenvectors: dict[str, Array]
    mean: dict[str, Array]
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class LoGra(Backend[LoGraState]):
    """`(C + λI)⁻¹ ≈ ⊕_layers B (Bᵀ C B + λI)⁻¹ Bᵀ`, B = B_in ⊗ B_out: low-rank gradient projection.

    Projecting a layer's gradient needs its projected inputs and output-gradients alone, so scoring computes no weight
    gradient and can cost less than one. What lies outside the bases is dropped; with "random" bases norms and inner
    products are unbiased, and λ keeps the meaning that it has for C itself. Exact where rank reaches the size of the only
    layer. Curvature between layers is left out (LogIX's convention; the mean eigenvalue is that of the unprojected
    block, whereas LogIX divides the trace by the projected size).
    Reference: arXiv 2405.13954 (LogIX, LoGra).

    Attributes:
        rank: Size of each side's basis; a block has rank² features.
        bases: "random" positions, or "pca": leading eigenvectors of the inputs' and output-gradients' second moments.
        samples: Draws from N(0, ∇²head) per example for `ggn` and `fisher` curvature of a separable loss; per batch for a
            batch-coupled one, where only a draw over the whole batch sees the coupling, so that many are needed.
        unexplained: What to do with parameters that no known layer explains.
    """

    rank: int = 16
    bases: Literal["random", "pca"] = "random"
    samples: int = 1
    unexplained: cut.Unexplained = "error"

    def fit(self, problem: Problem, key: Key[Array, ""]) -> LoGraState:
        """Choose bases, then average the outer products of projected curvature samples."""
        if problem.curvature == "hessian":
            raise CurvatureError(
                "LoGra averages outer products of gradients, which are positive semi-definite: it approximates 'ggn', "
                "'fisher' or 'empirical_fisher', got curvature='hessian'; use CG or Exact for the Hessian."
            )
        blocks = cut.discover(
            problem.objective.network, problem.params, problem.frozen, problem.batches.image.shape[2:], self.unexplained
        )
        bases = self._bases(problem, blocks, key)
        moments, traces = curvature_moments(
            problem,
            self.samples,
            lambda gradients: project(gradients, blocks, bases),
            lambda tree: {block.name: _into(jax.vmap(block.read)(tree), bases[block.name]) for block in blocks},
            blocks,
        )
        pairs = {name: jnp.linalg.eigh(moment) for name, moment in moments.items()}
        return LoGraState(
            problem.params,
            bases,
            {name: jnp.maximum(values, 0.0) for name, (values, _) in pairs.items()},
            {name: vectors for name, (_, vectors) in pairs.items()},
            {block.name: traces[block.name] / block.size for block in blocks},
            blocks,
        )

    def mean_eigenvalue(self, state: LoGraState) -> Resolved:
        """tr(C)/P of every block."""
        return state.mean

    def smallest_eigenvalue(self, state: LoGraState) -> Float[Array, ""]:
        """Zero: a second moment."""
        return jnp.zeros(())

    def solve(self, state: LoGraState, vector: Params, damping: Resolved) -> Params:
        """`B V (μ + λ)⁻¹ Vᵀ Bᵀ v`, block by block; what is outside B comes back as zero."""
        cut.check_structure(state.params, vector)
        found = {}
        for block in state.blocks:
            name, bases = block.name, state.bases[block.name]
            part = block.read(vector)
            coordinates = _into(part[None], bases)[0] @ state.eigenvectors[name]
            solved = state.eigenvectors[name] @ (coordinates / (state.eigenvalues[name] + _of(damping, name)))
            found[name] = _out_of(solved, bases)
        return cut.assemble(vector, state.blocks, found)

    def draw_gram(self, state: LoGraState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Inner products of whitened features."""
        return gram_of_features(self.features(state, gradients, damping), gradients.draws)

    def bilinear_form(
        self, state: LoGraState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Inner products of whitened features."""
        return self.features(state, left, damping) @ self.features(state, right, damping).T

    def features(self, state: LoGraState, gradients: ExampleGradients, damping: Resolved) -> Float[Array, "n features"]:
        """`(μ + λ)^{-½} Vᵀ Bᵀ g` of all blocks: vectors whose inner products are influences."""
        projected = project(gradients, state.blocks, state.bases)
        return jnp.concatenate(
            [
                projected[name] @ vectors / jnp.sqrt(state.eigenvalues[name] + _of(damping, name))[None]
                for name, vectors in state.eigenvectors.items()
            ],
            axis=1,
        )

    def _bases(self, problem: Problem, blocks: cut.Blocks, key: Key[Array, ""]) -> Bases:
        dtype = jax.tree.leaves(problem.params)[0].dtype
        moments = side_moments(problem, blocks) if self.bases == "pca" else {}
        found: Bases = {}
        for block, block_key in zip(blocks, jax.random.split(key, len(blocks)), strict=True):
            if isinstance(block, cut.VectorBlock):
                rank = min(self.rank**2, block.size)
                found[block.name] = (random_basis(block_key, block.size, rank, dtype),)
                continue
            sides = []
            for side, size in enumerate((block.layer.inputs, block.layer.outputs)):
                rank = min(self.rank, size)
                if self.bases == "pca":
                    chosen = [leading_eigenvectors(moment, rank) for moment in moments[block.name][side]]
                else:
                    keys = jax.random.split(jax.random.fold_in(block_key, side), block.layer.groups)
                    chosen = [random_basis(k, size, rank, dtype) for k in keys]
                sides.append(jnp.stack(chosen))
            found[block.name] = tuple(sides)
        return found


def project(gradients: ExampleGradients, blocks: cut.Blocks, bases: Bases) -> Features:
    """`Bᵀ g` of every block, flattened."""
    found = {}
    for block in blocks:
        if isinstance(block, cut.MatrixBlock):
            projected = block.projected(gradients, *bases[block.name])
            found[block.name] = projected.reshape(projected.shape[0], -1)
        else:
            found[block.name] = block.materialised(gradients) @ bases[block.name][0]
    return found


def _into(parts: Float[Array, "n *shape"], bases: tuple[Array, ...]) -> Float[Array, "n features"]:
    """`Bᵀ` of blocks in their own shape."""
    if len(bases) == 1:
        return parts @ bases[0]
    return jnp.einsum("gik,ngio,gol->ngkl", bases[0], parts, bases[1]).reshape(parts.shape[0], -1)


def _out_of(features: Float[Array, " features"], bases: tuple[Array, ...]) -> Float[Array, "*shape"]:
    """`B` of features: a block in its own shape."""
    if len(bases) == 1:
        return bases[0] @ features
    left, right = bases
    core = features.reshape(left.shape[0], left.shape[2], right.shape[2])
    return jnp.einsum("gik,gkl,gol->gio", left, core, right)


def _of(damping: Resolved, name: str) -> Float[Array, ""]:
    return damping[name] if isinstance(damping, dict) else damping
