"""Approximate the curvature of each layer by Kronecker factors: K-FAC and EK-FAC."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Key

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.moments import factor_moments
from influence_ssl_jax.ihvp.backend import Backend, Grid
from influence_ssl_jax.ihvp.eigenbasis import (
    Bases,
    EigenbasisBackend,
    EigenbasisState,
    Project,
    ProjectTrees,
    Scalars,
    eigendecompose,
    project,
    project_trees,
    projections_onto,
    refuse_hessian,
    second_moments,
    squared_norms,
    squared_norms_of_trees,
)
from influence_ssl_jax.linalg.lowrank import kronecker_eigenvalues, stacked_eigenpairs
from influence_ssl_jax.parallel import spread
from influence_ssl_jax.problem import Problem


@dataclasses.dataclass(frozen=True)
class KFAC(EigenbasisBackend):
    """`C ≈ ⊕_layers A ⊗ S`, A the second moment of a layer's inputs (a last 1 for the bias), S of its output-gradients.

    EK-FAC without its correction: the eigenvalues of a layer are the products `α_i σ_j`. Exact where inputs and
    output-gradients are independent and a layer is called at one position. λ is relative to tr(C)/P of the block, as
    everywhere, not to the product of the factors' means.
    Reference: arXiv 1503.05671 (K-FAC), arXiv 1602.01407 (convolutions).

    Attributes:
        rank: Eigenvectors kept on each side of a layer; all where None.
        samples: Draws from N(0, ∇²head), per example or per batch of a batch-coupled loss.
        exact_limit: Blocks without a weight matrix are taken apart exactly up to so many parameters; larger ones keep
            their diagonal.
        unexplained: What to do with parameters that no known layer explains.
    """

    rank: int | None = None
    samples: int = 1
    exact_limit: int = 2048
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "A baseline: EK-FAC without its corrected eigenvalues."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(samples=grid.samples),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Average the factors, take them apart in float64; average tr(C) and the blocks without a weight matrix."""
        del key
        refuse_hessian(problem, self)
        blocks = cut.discover_blocks(problem, self.unexplained)
        found = kronecker_bases(problem, blocks, self.samples, self.rank)
        vectors = tuple(block for block in blocks if isinstance(block, cut.VectorBlock))
        moments, traces = second_moments(
            problem,
            self.samples,
            small_vectors(blocks, self.exact_limit),
            lambda g: (project(g, vectors, found.bases), squared_norms(g, blocks)),
            lambda g: (project_trees(g, vectors, found.bases), squared_norms_of_trees(g, blocks)),
        )
        return eigendecompose(problem, blocks, found.bases, moments | found.eigenvalues, traces | found.totals, traces)


class KroneckerBases(NamedTuple):
    """Eigenvectors of Kronecker factors.

    Attributes:
        bases: U and V of every layer; nothing of blocks without a weight matrix.
        eigenvalues: The products `α_i σ_j` of every layer.
        totals: `tr(A) tr(S)` of every layer, summed over groups.
    """

    bases: Bases
    eigenvalues: dict[str, Array]
    totals: Scalars


def kronecker_bases(problem: Problem, blocks: cut.Blocks, samples: int, rank: int | None) -> KroneckerBases:
    """The leading `rank` eigenvectors of each factor of every layer."""
    found = KroneckerBases({block.name: () for block in blocks}, {}, {})
    factors = factor_moments(problem, blocks, samples)
    sides = [side for pair in factors.values() for side in pair]
    pairs = iter(spread(lambda side: stacked_eigenpairs(side, rank), sides, [_cost(side) for side in sides]))
    for name, (inputs, outputs) in factors.items():
        (alpha, left), (sigma, right) = next(pairs), next(pairs)
        found.bases[name] = (left, right)
        found.eigenvalues[name] = kronecker_eigenvalues(alpha, sigma)
        found.totals[name] = jnp.sum(jnp.einsum("gii->g", inputs) * jnp.einsum("gii->g", outputs))
    return found


def _cost(stack: Array) -> int:
    """Of taking a stack of matrices apart, in any unit."""
    return stack.shape[0] * stack.shape[1] ** 3


def small_vectors(blocks: cut.Blocks, limit: int) -> frozenset[str]:
    """Names of the blocks without a weight matrix and of at most `limit` parameters: those that are taken apart."""
    return frozenset(block.name for block in blocks if isinstance(block, cut.VectorBlock) and block.size <= limit)


@dataclasses.dataclass(frozen=True)
class EKFAC(EigenbasisBackend):
    """`C ≈ ⊕_layers (U ⊗ V) diag(Λ) (U ⊗ V)ᵀ`, U and V the eigenvectors of the layer's Kronecker factors.

    `Λ = Σ (Uᵀ G V)²` over curvature samples: of all matrices that are diagonal in that basis the nearest to C, exact
    where the block is a Kronecker product. With a `rank`, the leading eigenvectors of each side are kept and the rest
    of a block counts with its mean curvature. BatchNorm's parameters (and others without a weight matrix) are small
    blocks, exact up to `exact_limit`. Factors leave out what a batch-coupled loss puts between examples; Λ has it.
    Reference: arXiv 1806.03884 (EK-FAC), arXiv 1602.01407 (convolutions), arXiv 2308.03296 (influence).

    Attributes:
        rank: Eigenvectors kept on each side of a layer; all where None.
        samples: Draws from N(0, ∇²head) per example for `ggn` and `fisher` curvature of a separable loss; per batch for
            a batch-coupled one, where only a draw over the whole batch sees the coupling, so that many are needed.
        exact_limit: Blocks of this many parameters at most are taken apart exactly where they have no weight matrix;
            larger ones keep their diagonal.
        unexplained: What to do with parameters that no known layer explains.
    """

    rank: int | None = None
    samples: int = 1
    exact_limit: int = 2048
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "Many images on a large network, with an audit to calibrate."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(samples=grid.samples),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Average the factors, take them apart in float64, then average squared coordinates in their eigenbasis."""
        del key
        refuse_hessian(problem, self)
        blocks = cut.discover_blocks(problem, self.unexplained)
        bases = kronecker_bases(problem, blocks, self.samples, self.rank).bases
        return correct_eigenvalues(problem, blocks, bases, self, *projections_onto(blocks, bases))


def correct_eigenvalues(
    problem: Problem,
    blocks: cut.Blocks,
    bases: Bases,
    settings: EKFAC,
    project: Project,
    project_trees: ProjectTrees,
) -> EigenbasisState:
    """The eigenvalue correction: second moments, in `bases`, of the coordinates that `project` makes of gradients."""
    dense = small_vectors(blocks, settings.exact_limit)
    moments, traces = second_moments(problem, settings.samples, dense, project, project_trees)
    return eigendecompose(problem, blocks, bases, moments, traces, traces)
