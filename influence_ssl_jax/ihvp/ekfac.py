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
    """K-FAC: `C ≈ ⊕_layers A ⊗ S`.

    A is the second moment of a layer's inputs (with a last 1 for the bias), and S is that of its output-gradients. It
    is EK-FAC without the correction: the eigenvalues of a layer are the products `α_i σ_j`. It is exact if inputs and
    output-gradients are independent and a layer is called at one position. λ is relative to tr(C)/P of the block, as
    in all backends, not to the product of the factors' means.
    Reference: arXiv 1503.05671 (K-FAC), arXiv 1602.01407 (convolutions).

    Attributes:
        rank: Number of eigenvectors kept on each side of a layer; all if None.
        samples: Draws from N(0, ∇²head), for each example or for each batch of a batch-coupled loss.
        exact_limit: Largest number of parameters of a block without a weight matrix whose eigenvectors are computed;
            larger blocks keep their diagonal.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.KFAC(rank=64)  # isj.score(encoder, images, backend=backend)
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
        """Average the factors and compute their eigenpairs in float64.

        Also average tr(C), and the second moments of the blocks without a weight matrix.
        """
        del key
        refuse_hessian(problem, self)
        blocks = cut.discover_blocks(problem, self.unexplained)
        kronecker = kronecker_bases(problem, blocks, self.samples, self.rank)
        vectors = tuple(block for block in blocks if isinstance(block, cut.VectorBlock))
        moments, traces = second_moments(
            problem,
            self.samples,
            small_vectors(blocks, self.exact_limit),
            lambda g: (project(g, vectors, kronecker.bases), squared_norms(g, blocks)),
            lambda g: (project_trees(g, vectors, kronecker.bases), squared_norms_of_trees(g, blocks)),
        )
        return eigendecompose(
            problem, blocks, kronecker.bases, moments | kronecker.eigenvalues, traces | kronecker.totals, traces
        )


class KroneckerBases(NamedTuple):
    """Eigenpairs of Kronecker factors.

    Attributes:
        bases: U and V of every layer; empty for blocks without a weight matrix.
        eigenvalues: The products `α_i σ_j` of every layer.
        totals: `tr(A) tr(S)` of every layer, summed over groups.
    """

    bases: Bases
    eigenvalues: dict[str, Array]
    totals: Scalars


def kronecker_bases(problem: Problem, blocks: cut.Blocks, samples: int, rank: int | None) -> KroneckerBases:
    """Compute the leading `rank` eigenvectors of each factor of every layer.

    Args:
        problem: The problem.
        blocks: The blocks.
        samples: Draws for each example, or for each batch of a coupled loss.
        rank: Number of eigenvectors on each side; all if None.
    """
    kronecker = KroneckerBases({block.name: () for block in blocks}, {}, {})
    factors = factor_moments(problem, blocks, samples)
    sides = [side for pair in factors.values() for side in pair]
    pairs = iter(spread(lambda side: stacked_eigenpairs(side, rank), sides, [_cost(side) for side in sides]))
    for name, (inputs, outputs) in factors.items():
        (alpha, left), (sigma, right) = next(pairs), next(pairs)
        kronecker.bases[name] = (left, right)
        kronecker.eigenvalues[name] = kronecker_eigenvalues(alpha, sigma)
        kronecker.totals[name] = jnp.sum(jnp.einsum("gii->g", inputs) * jnp.einsum("gii->g", outputs))
    return kronecker


def _cost(stack: Array) -> int:
    """Estimate the cost of a stack's eigenpairs, in arbitrary units."""
    return stack.shape[0] * stack.shape[1] ** 3


def small_vectors(blocks: cut.Blocks, limit: int) -> frozenset[str]:
    """Return the names of the small blocks without a weight matrix.

    They have at most `limit` parameters, and their eigenvectors are computed.
    """
    return frozenset(block.name for block in blocks if isinstance(block, cut.VectorBlock) and block.size <= limit)


@dataclasses.dataclass(frozen=True)
class EKFAC(EigenbasisBackend):
    """EK-FAC: `C ≈ ⊕_layers (U ⊗ V) diag(Λ) (U ⊗ V)ᵀ`.

    U and V are the eigenvectors of the layer's Kronecker factors, and `Λ = Σ (Uᵀ G V)²` over curvature samples. Among
    all matrices that are diagonal in this basis, it is the nearest to C, and it is exact if the block is a Kronecker
    product. With a `rank`, the leading eigenvectors of each side are kept, and the rest of a block counts with its
    mean curvature. BatchNorm's parameters (and others without a weight matrix) are small blocks, exact up to
    `exact_limit`. The factors leave out what a batch-coupled loss puts between examples; Λ includes it.
    Reference: arXiv 1806.03884 (EK-FAC), arXiv 1602.01407 (convolutions), arXiv 2308.03296 (influence).

    Attributes:
        rank: Number of eigenvectors kept on each side of a layer; all if None.
        samples: Draws from N(0, ∇²head) for `ggn` and `fisher` curvature: for each example if the loss is separable;
            for each batch if it couples examples. Then only a draw over the whole batch includes the coupling, so
            many draws are needed.
        exact_limit: Largest number of parameters of a block without a weight matrix whose eigenvectors are computed;
            larger blocks keep their diagonal.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.EKFAC(rank=64)  # isj.score(encoder, images, backend=backend)
    """

    rank: int | None = None
    samples: int = 1
    exact_limit: int = 2048
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "Many images on a large network, with an audit to calibrate."
    sums_of_squares: ClassVar[bool] = True

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(samples=grid.samples),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Average the factors, then average squared coordinates in their eigenbasis.

        The eigenvectors of the factors are computed in float64.
        """
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
    """Compute the second moments, in `bases`, of the coordinates of gradients.

    Args:
        problem: The problem.
        blocks: The blocks.
        bases: The bases.
        settings: The backend.
        project: Coordinates and squared norms of per-example gradients.
        project_trees: The same for whole gradients with a leading axis.
    """
    dense = small_vectors(blocks, settings.exact_limit)
    moments, traces = second_moments(problem, settings.samples, dense, project, project_trees)
    return eigendecompose(problem, blocks, bases, moments, traces, traces)
