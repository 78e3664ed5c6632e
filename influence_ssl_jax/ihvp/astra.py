"""ASTRA: steps towards the solution that EK-FAC preconditions, with momentum."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.products import matvec, mean_eigenvalue
from influence_ssl_jax.ihvp.backend import Backend, Grid, Resolved, whole
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisState, refuse_hessian
from influence_ssl_jax.ihvp.ekfac import EKFAC
from influence_ssl_jax.ihvp.iterations import MARGIN, Iterations, IterationState, Steps, iterated, only, orders_of
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

_DAMPINGS = (1e-4, 1e-2, 1.0, 100.0)  # λ over the mean eigenvalue, at which the length of a step is found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ASTRAState(IterationState):
    """As every iteration's state, with an EK-FAC and how far a step may go.

    Attributes:
        preconditioner: K.
        dampings: λ_j, rising.
        reach: Estimates from below of the largest eigenvalue ν_j of `(K + λ_j I)⁻¹(C + λ_j I)`, C of any batch where steps
            take single batches.
    """

    preconditioner: EigenbasisState
    dampings: Float[Array, " points"]
    reach: Float[Array, " points"]


@dataclasses.dataclass(frozen=True)
class ASTRA(Iterations[ASTRAState]):
    """`d ← β d + α (K + λI)⁻¹ (v − (C + λI) x)`, `x ← x + d`, `depth` times from zero; K an EK-FAC of C.

    Gradient descent on `½xᵀ(C + λI)x − vᵀx` with momentum, where EK-FAC evens out what LiSSA's steps crawl along. α is
    1/(1.25 ν), ν the largest eigenvalue of `(K + λI)⁻¹(C + λI)`; it converges below 2(1 + β)/ν. ν falls with λ where it is
    above 1, so that the fit finds it at four λ, and the next of them below the λ asked for bounds it. `Form.residual`
    tells what is left after `depth` steps.
    Reference: arXiv 2507.14740 (with `steps="one"`, whose noise ends on a plateau that falls with α: `standard_error`).

    Attributes:
        depth: Steps.
        steps: Each takes C of "all" batches, which makes the approximation symmetric and a score independent of the
            others; or of "one" batch drawn at random, as published.
        momentum: β.
        samples: Draws of the EK-FAC, per example or per batch of a batch-coupled loss.
        repeats: Independent runs to average, of steps that take "one" batch.
        power_steps: Steps of the power iteration for ν.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the spectrum, for damping by effective dimension alone.
        unexplained: What to do with parameters that no known layer explains.
    """

    depth: int = 100
    steps: Steps = "all"
    momentum: float = 0.9
    samples: int = 1
    repeats: int = 4
    power_steps: int = 20
    probes: int = 16
    lanczos_steps: int = 40
    unexplained: cut.Unexplained = "error"
    vectors_per_draw: ClassVar[int] = 8  # of the gradient, the steps and the product; 7.4 measured
    when_to_use: ClassVar[str] = "To repeat published results; CG with EK-FAC is as cheap."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(depth, samples=grid.samples, probes=grid.probes) for depth in grid.depths)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> ASTRAState:
        """Fit the EK-FAC, estimate the mean eigenvalue, and find how long steps may be; draw the batches.

        Raises:
            CurvatureError: The curvature is a Hessian, which has no EK-FAC.
        """
        refuse_hessian(problem, self)
        mean_key, power_key, order_key, other_key = jax.random.split(key, 4)
        average, error = mean_eigenvalue(problem, mean_key, self.probes)
        other = EKFAC(samples=self.samples, unexplained=self.unexplained).fit(problem, other_key)
        dampings = average * jnp.asarray(_DAMPINGS, average.dtype)

        def reach(damping: Float[Array, ""]) -> Float[Array, ""]:
            if self.steps == "all":
                return self._largest(problem, other, damping, power_key)
            numbers = jnp.arange(problem.batches.index.shape[0])
            return jnp.max(jax.lax.map(lambda i: self._largest(only(problem, i), other, damping, power_key), numbers))

        return ASTRAState(
            problem=problem,
            mean=average,
            error=error,
            smallest=jnp.zeros_like(average),
            orders=orders_of(problem, self.steps, self.repeats, self.depth, order_key),
            preconditioner=other,
            dampings=dampings,
            reach=jax.lax.map(reach, dampings),
        )

    def runs(self, state: ASTRAState, vector: Params, damping: Resolved) -> Params:
        """Every repeat's x, leaves [repeats, …]."""
        value = whole(damping)
        rate = 1 / (MARGIN * self._reach(state, value))
        precondition = partial(EKFAC().solve, state.preconditioner, damping=value)

        def step(carry: tuple[Params, Params], cx: Params) -> tuple[Params, Params]:
            x, moved = carry
            left = jax.tree.map(lambda v, ca, a: v - ca - value * a, vector, cx, x)
            moved = jax.tree.map(lambda d, p: self.momentum * d + rate * p, moved, precondition(left))
            return jax.tree.map(jnp.add, x, moved), moved

        zero = jax.tree.map(jnp.zeros_like, vector)
        return iterated(state, step, lambda carry: carry[0], (zero, zero), self.depth)

    def _reach(self, state: ASTRAState, damping: Float[Array, ""]) -> Float[Array, ""]:
        """A bound of ν at λ: that at the next λ_j below it, and `ν_1 λ_1/λ` below all.

        `C + λ_jI ≼ ν_j (K + λ_jI)` and ν_j ≥ 1 give `C + λI ≼ ν_j (K + λI)` for λ ≥ λ_j; and for λ < λ_1
        `C + λI ≼ C + λ_1I ≼ ν_1 (K + λ_1I) ≼ ν_1 (λ_1/λ) (K + λI)`.
        """
        below = jnp.maximum(jnp.sum(state.dampings <= damping) - 1, 0)
        return jnp.maximum(state.reach[below], 1.0) * jnp.maximum(state.dampings[0] / damping, 1.0)

    def _largest(
        self, problem: Problem, preconditioner: EigenbasisState, damping: Float[Array, ""], key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """`vᵀMv / vᵀ(K + λI)v` after steps `v ← (K + λI)⁻¹ M v`, `M = C + λI`: rises to ν from below."""
        product = matvec(problem)

        def times(v: Params) -> Params:
            return jax.tree.map(lambda cv, a: cv + damping * a, product(v), v)

        def step(carry: tuple[Params, Array], _: None) -> tuple[tuple[Params, Array], None]:
            image, _rise = carry
            v = EKFAC().solve(preconditioner, image, damping)
            size = jnp.sqrt(trees.dot(v, image))  # of v in the norm of K + λI
            image = jax.tree.map(lambda leaf: leaf / size, times(v))
            return (image, trees.dot(v, image) / size), None

        start = trees.unravel(problem.params, randomness.normal(key, (trees.size(problem.params),), damping.dtype))
        (_, rise), _ = jax.lax.scan(step, (start, jnp.zeros((), damping.dtype)), None, self.power_steps)
        return rise
