"""Invert the curvature of each layer's projected gradients (LoGra)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.moments import side_moments
from influence_ssl_jax.ihvp.backend import Backend, Grid
from influence_ssl_jax.ihvp.eigenbasis import (
    Bases,
    EigenbasisBackend,
    EigenbasisState,
    eigendecompose,
    projections_onto,
    refuse_hessian,
    second_moments,
)
from influence_ssl_jax.linalg.lowrank import leading_eigenvectors, random_basis, random_orthonormal
from influence_ssl_jax.problem import Problem


@dataclasses.dataclass(frozen=True)
class LoGra(EigenbasisBackend):
    """LoGra: `(C + λI)⁻¹ ≈ ⊕_layers B (Bᵀ C B + λI)⁻¹ Bᵀ` with B = B_in ⊗ B_out.

    This is low-rank gradient projection. Projecting a layer's gradient needs only its projected inputs and
    output-gradients, so scoring computes no weight gradient and can cost less than one. What lies outside the bases
    is dropped, as published. With "random" bases, norms and inner products are unbiased, and λ keeps the meaning that
    it has for C itself as long as a block has far fewer nonzero eigenvalues r than rank². Measured at rank 16 on a 64
    × 64 layer: r = 8 changes the eigenvalues by a factor of 0.74 to 1.24, r = 32 by 0.46 to 1.85; and r = 2048 makes
    all of them 6 to 12 times as large, because the trace of 2048 eigenvalues is that of 256. It is exact if the rank
    reaches the size of the only layer. Curvature between layers is left out (LogIX's convention; the mean eigenvalue
    is that of the unprojected block, whereas LogIX divides the trace by the projected size). With `complement="keep"`
    the bases are orthonormal, and what they leave out counts with its mean curvature, through the gradients' norms,
    as in low-rank EK-FAC.
    Reference: arXiv 2405.13954 (LogIX, LoGra).

    Attributes:
        rank: Size of each side's basis; a block has rank² features.
        bases: "random" positions, or "pca": leading eigenvectors of the second moments of inputs and
            output-gradients.
        complement: "drop" what lies outside the bases, or "keep" it.
        samples: Draws from N(0, ∇²head) for `ggn` and `fisher` curvature: for each example if the loss is separable;
            for each batch if it couples examples. Then only a draw over the whole batch includes the coupling, so
            many draws are needed.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.LoGra(rank=32)  # isj.score(encoder, images, backend=backend)
    """

    rank: int = 16
    bases: Literal["random", "pca"] = "random"
    complement: Literal["drop", "keep"] = "drop"
    samples: int = 1
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "The least time and memory; near the gradient's norm at small rank."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(
            cls(rank, complement=rest, samples=grid.samples) for rank in grid.projections for rest in ("drop", "keep")
        )

    @property
    def definite(self) -> bool:
        """Whether the complement is kept."""
        return self.complement == "keep"

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Choose bases, then average the outer products of projected curvature samples."""
        refuse_hessian(problem, self)
        blocks = cut.discover_blocks(problem, self.unexplained)
        bases = self._bases(problem, blocks, key)
        every = frozenset(block.name for block in blocks)
        moments, traces = second_moments(problem, self.samples, every, *projections_onto(blocks, bases))
        state = eigendecompose(problem, blocks, bases, moments, traces, traces)
        return state if self.complement == "keep" else dataclasses.replace(state, level={})

    def _bases(self, problem: Problem, blocks: cut.Blocks, key: Key[Array, ""]) -> Bases:
        """Choose the basis of each side of each block."""
        dtype = jax.tree.leaves(problem.params)[0].dtype
        # If the rest is dropped, a scaled basis keeps norms in expectation; if it is kept, no scale is needed.
        draw = {"drop": random_basis, "keep": random_orthonormal}[self.complement]
        moments = side_moments(problem, blocks) if self.bases == "pca" else {}
        wanted: dict[tuple[str, int], _Wanted] = {}
        bases: dict[tuple[str, int], Array] = {}
        for block, block_key in zip(blocks, jax.random.split(key, len(blocks)), strict=True):
            if isinstance(block, cut.VectorBlock):
                wanted[block.name, 0] = _Wanted(block.size, min(self.rank**2, block.size), block_key[None])
                continue
            for side, size in enumerate((block.inputs, block.outputs)):
                rank = min(self.rank, size)
                if self.bases == "pca":
                    chosen = [leading_eigenvectors(moment, rank) for moment in moments[block.name][side]]
                    bases[block.name, side] = jnp.stack(chosen)
                else:
                    keys = jax.random.split(jax.random.fold_in(block_key, side), block.groups)
                    wanted[block.name, side] = _Wanted(size, rank, keys)
        bases |= _draw_together(draw, wanted, dtype)
        return {
            block.name: (bases[block.name, 0][0],)
            if isinstance(block, cut.VectorBlock)
            else (bases[block.name, 0], bases[block.name, 1])
            for block in blocks
        }


class _Wanted(NamedTuple):
    """Random bases to draw for one side of a block.

    There is one basis for each key.
    """

    size: int
    rank: int
    keys: Key[Array, " groups"]


def _draw_together(
    draw: Callable[[Key[Array, ""], int, int, jax.typing.DTypeLike], Array],
    wanted: dict[tuple[str, int], _Wanted],
    dtype: jax.typing.DTypeLike,
) -> dict[tuple[str, int], Array]:
    """Draw all bases of one size and rank in one operation.

    A network has few sizes, and a draw compiles slowly.
    """
    alike: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for place, (size, rank, _) in wanted.items():
        alike.setdefault((size, rank), []).append(place)
    drawn = {}
    for (size, rank), places in alike.items():
        keys = jnp.concatenate([wanted[place].keys for place in places])
        # One after another: on a CPU, batched LAPACK calls can wait for each other for ever.
        together = jax.lax.map(lambda key, size=size, rank=rank: draw(key, size, rank, dtype), keys)
        ends = np.cumsum([len(wanted[place].keys) for place in places])[:-1]
        drawn |= dict(zip(places, jnp.split(together, ends), strict=True))
    return drawn
