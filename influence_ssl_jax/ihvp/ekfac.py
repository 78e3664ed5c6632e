"""EK-FAC: every layer's curvature in the eigenbasis of its Kronecker factors, with corrected eigenvalues."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Array, Key

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.ihvp import bases as basis
from influence_ssl_jax.ihvp.backend import Backend, Grid
from influence_ssl_jax.ihvp.eigenbasis import (
    EigenbasisBackend,
    EigenbasisState,
    Project,
    ProjectTrees,
    in_bases,
    refuse_hessian,
    second_moments,
    taken_apart,
)
from influence_ssl_jax.ihvp.kfac import kronecker_bases, small_vectors
from influence_ssl_jax.problem import Problem


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
        blocks = basis.discover_blocks(problem, self.unexplained)
        bases = kronecker_bases(problem, blocks, self.samples, self.rank).bases
        return corrected(problem, blocks, bases, self, *in_bases(blocks, bases))


def corrected(
    problem: Problem,
    blocks: cut.Blocks,
    bases: basis.Bases,
    settings: EKFAC,
    project: Project,
    project_trees: ProjectTrees,
) -> EigenbasisState:
    """The eigenvalue correction: second moments, in `bases`, of the coordinates that `project` makes of gradients."""
    dense = small_vectors(blocks, settings.exact_limit)
    moments, traces = second_moments(problem, settings.samples, dense, project, project_trees)
    return taken_apart(problem, blocks, bases, moments, traces, traces)
