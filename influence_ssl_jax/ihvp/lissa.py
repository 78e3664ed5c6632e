"""LiSSA: the inverse as a truncated Neumann series, on the whole curvature set or on a random batch a step."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.products import flat_products, mean_eigenvalue
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.ihvp.backend import Backend, Damping, Grid, Resolved, whole
from influence_ssl_jax.ihvp.iterations import MARGIN, Iterations, IterationState, Steps, iterated, only, orders_of
from influence_ssl_jax.linalg.krylov import largest_eigenvalue, leading_eigenpairs
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiSSAState(IterationState):
    """As every iteration's state.

    Attributes:
        largest: Estimate from below of the largest eigenvalue of C, or of any batch's C where steps take single batches.
    """

    largest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class LiSSA(Iterations[LiSSAState]):
    """`x ← x + (v − (C + λI) x) / scale`, `depth` times from zero: a Neumann series of `(C + λI)⁻¹ v`.

    λ is the λ of `(C + λI)⁻¹`, whatever the scale. (Elsewhere the recursion is `u ← v + (1−d)u − Cu/s` and returns `u/s`,
    which solves with λ = d·s.) It converges where `2 · scale > μ_max + λ`; what is left after `depth` steps is at most
    `(1 − λ/scale)^depth` of v where scale ≥ μ_max + λ, and `Form.residual` tells what is left in truth.
    Reference: arXiv 1602.03943; arXiv 1703.04730.

    Attributes:
        depth: Steps.
        steps: Each takes C of "all" batches, which makes the approximation one polynomial of C; or of "one" batch drawn
            at random, which is unbiased as depth grows and noisy (`standard_error`).
        scale: Divisor of each step; from the largest eigenvalue, found by power iteration, where None.
        repeats: Independent runs to average, of steps that take "one" batch.
        power_steps: Steps of that power iteration.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the smallest eigenvalue, for `hessian` curvature alone, and of the spectrum,
            for damping by effective dimension alone.
    """

    depth: int = 1000
    steps: Steps = "all"
    scale: float | None = None
    repeats: int = 4
    power_steps: int = 20
    probes: int = 16
    lanczos_steps: int = 40
    when_to_use: ClassVar[str] = "To repeat published results; CG takes fewer products with C."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(depth, probes=grid.probes) for depth in grid.depths)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> LiSSAState:
        """Estimate the largest and the mean eigenvalue and, of a Hessian, the smallest one; draw the batches."""
        mean_key, power_key, order_key, start_key = jax.random.split(key, 4)
        like, count = trees.ravel(problem.params), problem.batches.index.shape[0]
        mean, error = mean_eigenvalue(problem, mean_key, self.probes)
        if self.steps == "all":
            largest = largest_eigenvalue(flat_products(problem), power_key, like, self.power_steps)
        else:
            largest = jnp.max(
                jax.lax.map(
                    lambda i: largest_eigenvalue(
                        flat_products(only(problem, i)), jax.random.fold_in(power_key, i), like, self.power_steps
                    ),
                    jnp.arange(count),
                )
            )
        smallest = jnp.zeros_like(mean)
        if problem.curvature == "hessian":
            smallest = leading_eigenpairs(flat_products(problem), start_key, like, 1, 1, self.lanczos_steps).smallest
        orders = orders_of(problem, self.steps, self.repeats, self.depth, order_key)
        return LiSSAState(problem, mean, error, smallest, orders, largest)

    def resolve(self, state: LiSSAState, damping: Damping) -> Resolved:
        """λ in numbers.

        Raises:
            DivergenceError: The given scale is too small for this matrix.
        """
        resolved = whole(Backend.resolve(self, state, damping))
        reach = float(state.largest + resolved)
        if self.scale is not None and 2 * self.scale <= reach:
            raise DivergenceError(
                f"LiSSA diverges: its steps are divided by scale={self.scale:.4g} and converge only above half of the "
                f"largest eigenvalue of C + λI, which is at least {reach:.4g}. Use scale=None, which finds one, or a "
                f"scale of about {MARGIN * reach:.4g}."
            )
        return resolved

    def runs(self, state: LiSSAState, vector: Params, damping: Resolved) -> Params:
        """Every repeat's x, leaves [repeats, …]."""
        value = whole(damping)
        scale = MARGIN * state.largest + value if self.scale is None else self.scale

        def step(x: Params, cx: Params) -> Params:
            return jax.tree.map(lambda a, ca, v: a + (v - ca - value * a) / scale, x, cx, vector)

        return iterated(state, step, lambda x: x, jax.tree.map(jnp.zeros_like, vector), self.depth)
