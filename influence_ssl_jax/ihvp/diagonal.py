"""Approximate the curvature by its diagonal, or one number for all parameters."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import mean_eigenvalue
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Resolved, scalar
from influence_ssl_jax.ihvp.eigenbasis import (
    EigenbasisBackend,
    EigenbasisState,
    eigendecompose,
    projections_onto,
    refuse_hessian,
    second_moments,
)
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IdentityState:
    """The fitted curvature `C ≈ c I`.

    Attributes:
        params: Parameters, which define the structure of vectors.
        level: c = tr(C)/P.
        error: Relative standard error of c.
        blocks: The blocks, for per-example norms.
    """

    params: Params
    level: Float[Array, ""]
    error: Float[Array, ""]
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Identity(Backend[IdentityState]):
    """The null backend: `(C + λI)⁻¹ ≈ I / (c + λ)`.

    c is the mean eigenvalue. A score is then the squared norm of the gradient over c + λ, and ranks as TracIn does.

    Attributes:
        probes: Random vectors for the mean eigenvalue.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Identity(probes=64)  # isj.score(encoder, images, backend=backend)
    """

    probes: int = 16
    unexplained: cut.Unexplained = "error"
    vectors_per_draw: ClassVar[int] = 0  # norms are computed block by block
    when_to_use: ClassVar[str] = "A first look: ranks by the gradient's norm alone."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(probes=grid.probes),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> IdentityState:
        """Estimate the mean eigenvalue."""
        blocks = cut.discover_blocks(problem, self.unexplained)
        return IdentityState(problem.params, *mean_eigenvalue(problem, key, self.probes), blocks)

    def mean_eigenvalue(self, state: IdentityState) -> Resolved:
        """Return c."""
        return state.level

    def mean_error(self, state: IdentityState) -> Float[Array, ""]:
        """Return the relative standard error, from the spread of the probes."""
        return state.error

    def smallest_eigenvalue(self, state: IdentityState) -> Float[Array, ""]:
        """Return c, every eigenvalue of c I."""
        return state.level

    def solve(self, state: IdentityState, vector: Params, damping: Resolved) -> Params:
        """Compute `v / (c + λ)`."""
        cut.check_structure(state.params, vector)
        return trees.scale(1 / (state.level + scalar(damping)), vector)

    def draw_gram(self, state: IdentityState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute `⟨g_k, g_l⟩ / (c + λ)`, layer by layer and without the gradients."""
        values = gradients.gram(state.blocks) / (state.level + scalar(damping))
        return Form(values, jnp.zeros(values.shape[0], values.dtype))

    def bilinear_form(
        self, state: IdentityState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute `⟨g_i, g_j⟩ / (c + λ)`, block by block."""
        total = jnp.zeros((), left.cotangents.dtype)
        for block in state.blocks:
            total = total + block.cross_products(left, right)
        return total / (state.level + scalar(damping))


@dataclasses.dataclass(frozen=True)
class Diagonal(EigenbasisBackend):
    """The diagonal of the curvature: `(C + λI)⁻¹ ≈ diag(1 / (C_pp + λ))`.

    `C_pp = Σ g_p²` over curvature samples. Squares of drawn gradients are used in place of Hutchinson's `v ∘ C v`,
    because they are never negative, and their relative error is about √(2 / number of draws) in every entry, whatever
    the rest of its row.

    Attributes:
        samples: Draws from N(0, ∇²head), for each example or for each batch of a batch-coupled loss.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Diagonal(samples=4)  # isj.score(encoder, images, backend=backend)
    """

    samples: int = 1
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "A baseline: the curvature of each parameter by itself."
    sums_of_squares: ClassVar[bool] = True

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(samples=grid.samples),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> EigenbasisState:
        """Average the squares of curvature samples."""
        del key
        refuse_hessian(problem, self)
        blocks = cut.discover_blocks(problem, self.unexplained)
        bases = {block.name: () for block in blocks}
        moments, traces = second_moments(problem, self.samples, frozenset(), *projections_onto(blocks, bases))
        return eigendecompose(problem, blocks, bases, moments, traces, traces)
