"""Approximate the inverse by products of C with random vectors (Nyström)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products, standard_error
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Resolved, Workspace, scalar
from influence_ssl_jax.ihvp.eigenbasis import refuse_hessian
from influence_ssl_jax.linalg.lowrank import nystrom
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NystromState:
    """The fitted curvature `C ≈ Qᵀ diag(μ) Q + level · (I − QᵀQ)`.

    Attributes:
        params: Parameters, which define the structure of vectors.
        eigenvalues: μ.
        vectors: Q, orthonormal rows.
        level: Curvature outside Q.
        mean: tr(C)/P.
        error: Its relative standard error.
        blocks: The blocks, for per-example norms.
    """

    params: Params
    eigenvalues: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]
    level: Float[Array, ""]
    mean: Float[Array, ""]
    error: Float[Array, ""]
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Nystrom(Backend[NystromState]):
    """Nyström: `(C + λI)⁻¹ ≈ Qᵀ (μ + λ)⁻¹ Q + (I − QᵀQ) / (level + λ)`.

    `Qᵀ diag(μ) Q = CΩ (ΩᵀCΩ)⁻¹ ΩᵀC` for random Ω. The fit is one pass of `rank` products with C, all independent of
    each other. The approximation is never above C in any direction, and exact if `rank` reaches the rank of C. Its
    trace is completed by that of the remainder `C − Qᵀ diag(μ) Q`, estimated with few probes.
    Reference: arXiv 2110.02820 (algorithm 2.1); arXiv 2109.10659 (Nyström++) for the trace.

    Attributes:
        rank: Number of random vectors.
        complement: Curvature outside Q: "zero", as published, or "mean", that of the remainder.
        probes: Random vectors for the trace of the remainder.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Nystrom(rank=256)  # isj.score(encoder, images, backend=backend)
    """

    rank: int = 64
    complement: Literal["zero", "mean"] = "zero"
    probes: int = 16
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "As Arnoldi, by one pass of independent products with C."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(rank, complement="mean") for rank in grid.ranks)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> NystromState:
        """Multiply random vectors by C, factorise, and estimate the remainder's trace."""
        refuse_hessian(problem, self)
        products, like = flat_products(problem), trees.ravel(problem.params)
        draw_key, trace_key = jax.random.split(key)
        approximation = nystrom(products, draw_key, like, min(self.rank, like.size))

        signs = randomness.signs(trace_key, (self.probes, like.size), like.dtype)
        inside = jnp.sum((signs @ approximation.vectors.T) ** 2 * approximation.eigenvalues[None], axis=1)
        of_probes = jnp.sum(signs * products(signs), axis=1) - inside
        rest = jnp.maximum(jnp.mean(of_probes), 0.0)
        level = {"zero": jnp.zeros_like(rest), "mean": rest / max(like.size - self.rank, 1)}[self.complement]
        mean = (jnp.sum(approximation.eigenvalues) + rest) / like.size
        blocks = cut.discover_blocks(problem, self.unexplained)
        error = standard_error(of_probes) / (mean * like.size)
        return NystromState(
            problem.params, approximation.eigenvalues, approximation.vectors, level, mean, error, blocks
        )

    def mean_eigenvalue(self, state: NystromState) -> Resolved:
        """Return the estimate of tr(C)/P."""
        return state.mean

    def mean_error(self, state: NystromState) -> Float[Array, ""]:
        """Return the relative standard error, from the spread of the remainder's probes."""
        return state.error

    def smallest_eigenvalue(self, state: NystromState) -> Float[Array, ""]:
        """Return zero: C is positive semi-definite by construction."""
        return jnp.zeros_like(state.mean)

    def workspace(self, state: NystromState, parameters: int) -> Workspace:
        """Return the size of one more Q, shaped as the parameters.

        No gradient of an example is formed.
        """
        return Workspace(state.vectors.size + 2 * parameters, 0)

    def solve(self, state: NystromState, vector: Params, damping: Resolved) -> Params:
        """Compute `Qᵀ (μ + λ)⁻¹ Q v`, and divide what lies outside Q by `level + λ`."""
        cut.check_structure(state.params, vector)
        flat = trees.ravel(vector)
        weights, outside = _weights(state, damping)
        return trees.unravel(state.params, ((state.vectors @ flat) * weights) @ state.vectors + outside * flat)

    def draw_gram(self, state: NystromState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute weighted inner products of `Q g` and of the gradients.

        `Q g` is computed by forward mode.
        """
        weights, outside = _weights(state, damping)
        rows = _coordinates(state, gradients)
        drawn = rows.reshape(gradients.draws, -1, rows.shape[1])
        values = jnp.einsum("kbf,f,lbf->bkl", drawn, weights, drawn) + outside * gradients.gram(state.blocks)
        return Form(values, jnp.zeros(values.shape[0], values.dtype))

    def bilinear_form(
        self, state: NystromState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute the form of `draw_gram` between two batches."""
        weights, outside = _weights(state, damping)
        total = (_coordinates(state, left) * weights[None]) @ _coordinates(state, right).T
        for block in state.blocks:
            total = total + outside * block.cross_products(left, right)
        return total


def _weights(state: NystromState, damping: Resolved) -> tuple[Float[Array, " rank"], Array]:
    """Return `1/(μ + λ) − 1/(level + λ)` for the coordinates, `1/(level + λ)` for the vector."""
    outside = 1 / (state.level + scalar(damping))
    return 1 / (state.eigenvalues + scalar(damping)) - outside, outside


def _coordinates(state: NystromState, gradients: ExampleGradients) -> Float[Array, "n rank"]:
    """Compute `Q g` of every gradient by forward mode."""
    return gradients.along(jax.vmap(lambda row: trees.unravel(state.params, row))(state.vectors))
