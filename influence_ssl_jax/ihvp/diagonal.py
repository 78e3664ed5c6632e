"""The diagonal of the curvature."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Array, Key

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.ihvp.backend import Backend, Grid
from influence_ssl_jax.ihvp.bases import discover_blocks
from influence_ssl_jax.ihvp.eigenbasis import (
    EigenbasisBackend,
    EigenbasisState,
    in_bases,
    refuse_hessian,
    second_moments,
    taken_apart,
)
from influence_ssl_jax.problem import Problem


@dataclasses.dataclass(frozen=True)
class Diagonal(EigenbasisBackend):
    """`(C + λI)⁻¹ ≈ diag(1 / (C_pp + λ))`, `C_pp = Σ g_p²` over curvature samples.

    Squares of drawn gradients rather than Hutchinson's `v ∘ C v`: they are never negative, and their relative error is
    about √(2 / number of draws) in every entry, however large the rest of its row.

    Attributes:
        samples: Draws from N(0, ∇²head), per example or per batch of a batch-coupled loss.
        unexplained: What to do with parameters that no known layer explains.
    """

    samples: int = 1
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "A baseline: the curvature of each parameter by itself."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(samples=grid.samples),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Average the squares of curvature samples."""
        del key
        refuse_hessian(problem, self)
        blocks = discover_blocks(problem, self.unexplained)
        bases = {block.name: () for block in blocks}
        moments, traces = second_moments(problem, self.samples, frozenset(), *in_bases(blocks, bases))
        return taken_apart(problem, blocks, bases, moments, traces, traces)
