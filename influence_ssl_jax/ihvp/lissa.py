"""LiSSA: the inverse as a truncated Neumann series, on the whole curvature set or on a random batch a step."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products, matvec, mean_eigenvalue
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.ihvp.backend import Backend, Damping, Form, Knobs, Resolved, Spectrum, whole
from influence_ssl_jax.ihvp.cg import spectrum_by_products
from influence_ssl_jax.linalg.krylov import largest_eigenvalue, leading_eigenpairs
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

_MARGIN = 1.25  # over a power iteration's estimate, which is from below; convergence itself needs half the eigenvalue


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiSSAState:
    """The problem itself, with what the recursion needs to know of its matrix.

    Attributes:
        problem: What products are taken of.
        mean: tr(C)/P.
        error: Relative standard error of it.
        largest: Estimate from below of the largest eigenvalue of C, or of any batch's C where steps take single batches.
        smallest: Estimate of the smallest eigenvalue; zero unless the curvature can be indefinite.
        orders: Which batch each step of each repeat takes; empty where steps take the whole set.
    """

    problem: Problem
    mean: Float[Array, ""]
    error: Float[Array, ""]
    largest: Float[Array, ""]
    smallest: Float[Array, ""]
    orders: Int[Array, "repeats depth"]


@dataclasses.dataclass(frozen=True)
class LiSSA(Backend[LiSSAState]):
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
    steps: Literal["all", "one"] = "all"
    scale: float | None = None
    repeats: int = 4
    power_steps: int = 20
    probes: int = 16
    lanczos_steps: int = 40
    when_to_use: ClassVar[str] = "To repeat published results; CG takes fewer products with C."

    @classmethod
    def grid(cls, knobs: Knobs) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(depth, probes=knobs.probes) for depth in knobs.depths)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> LiSSAState:
        """Estimate the largest and the mean eigenvalue and, of a Hessian, the smallest one; draw the batches."""
        mean_key, power_key, order_key, start_key = jax.random.split(key, 4)
        like, count = trees.ravel(problem.params), problem.batches.index.shape[0]
        mean, error = mean_eigenvalue(problem, mean_key, self.probes)
        if self.steps == "all":
            orders = jnp.zeros((1, 0), jnp.int32)
            largest = largest_eigenvalue(flat_products(problem), power_key, like, self.power_steps)
        else:
            orders = randomness.integers(order_key, (self.repeats, self.depth), 0, count)
            largest = jnp.max(
                jax.lax.map(
                    lambda i: largest_eigenvalue(
                        flat_products(_only(problem, i)), jax.random.fold_in(power_key, i), like, self.power_steps
                    ),
                    jnp.arange(count),
                )
            )
        smallest = jnp.zeros_like(mean)
        if problem.curvature == "hessian":
            smallest = leading_eigenpairs(flat_products(problem), start_key, like, 1, 1, self.lanczos_steps).smallest
        return LiSSAState(problem, mean, error, largest, smallest, orders)

    def mean_eigenvalue(self, state: LiSSAState) -> Resolved:
        """tr(C)/P, estimated."""
        return state.mean

    def mean_error(self, state: LiSSAState) -> Float[Array, ""]:
        """From the spread of the probes."""
        return state.error

    def smallest_eigenvalue(self, state: LiSSAState) -> Float[Array, ""]:
        """Estimated by Lanczos for a Hessian, zero otherwise."""
        return state.smallest

    def spectrum(self, state: LiSSAState) -> Spectrum:
        """Estimated by Lanczos quadrature, `lanczos_steps` products with C for each of `probes` random vectors."""
        return spectrum_by_products(state.problem, self.probes, self.lanczos_steps)

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
                f"scale of about {_MARGIN * reach:.4g}."
            )
        return resolved

    def solve(self, state: LiSSAState, vector: Params, damping: Resolved) -> Params:
        """The mean of the repeats."""
        check_structure(state.problem.params, vector)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), self._runs(state, vector, damping))

    def draw_gram(self, state: LiSSAState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """`⟨g_k, x_l⟩` with every `x_l` solved for, symmetrised, and the worst true residual of each example.

        The residual is infinite, never NaN, where a run overflowed.
        """
        rows = gradients.full()
        product, value = matvec(state.problem), whole(damping)

        def missing(x: Params, vector: Params) -> Float[Array, ""]:
            left = jax.tree.map(lambda cx, leaf, v: cx + value * leaf - v, product(x), x, vector)
            ratio = trees.norm(left) / jnp.maximum(trees.norm(vector), jnp.finfo(state.mean.dtype).tiny)
            return jnp.where(jnp.isfinite(ratio), ratio, jnp.inf)

        solved = jax.vmap(lambda v: self.solve(state, v, damping))(rows)
        residual = jax.vmap(missing)(solved, rows)
        left, right = (trees.ravel_batch(tree).reshape(gradients.draws, -1, _size(state)) for tree in (rows, solved))
        values = jnp.einsum("kbp,lbp->bkl", left, right)
        return Form((values + jnp.swapaxes(values, 1, 2)) / 2, jnp.max(residual.reshape(gradients.draws, -1), axis=0))

    def bilinear_form(
        self, state: LiSSAState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """`⟨g_i, x_j⟩` with every `x_j` of the right solved for."""
        solved = jax.vmap(lambda v: self.solve(state, v, damping))(right.full())
        return trees.ravel_batch(left.full()) @ trees.ravel_batch(solved).T

    def standard_error(self, state: LiSSAState, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """Standard error of each quadratic form over the repeats; NaN where there is one alone."""
        rows = gradients.full()
        runs = jax.vmap(lambda v: trees.ravel_batch(self._runs(state, v, damping)))(rows)
        values = jnp.einsum("np,nrp->nr", trees.ravel_batch(rows), runs)
        return jnp.std(values, axis=1, ddof=1) / runs.shape[1] ** 0.5

    def _runs(self, state: LiSSAState, vector: Params, damping: Resolved) -> Params:
        """Every repeat's x, leaves [repeats, …]."""
        value = whole(damping)
        scale = _MARGIN * state.largest + value if self.scale is None else self.scale

        def step(x: Params, cx: Params) -> Params:
            return jax.tree.map(lambda a, ca, v: a + (v - ca - value * a) / scale, x, cx, vector)

        zero = jax.tree.map(jnp.zeros_like, vector)
        if self.steps == "all":
            product = matvec(state.problem)
            found = jax.lax.fori_loop(0, self.depth, lambda _, x: step(x, product(x)), zero)
            return jax.tree.map(lambda leaf: leaf[None], found)

        def run(order: Int[Array, " depth"]) -> Params:
            return jax.lax.scan(lambda x, i: (step(x, matvec(_only(state.problem, i))(x)), None), zero, order)[0]

        return jax.lax.map(run, state.orders)


def _only(problem: Problem, batch: Int[Array, ""]) -> Problem:
    """The problem of one batch alone."""
    return dataclasses.replace(problem, batches=jax.tree.map(lambda leaf: leaf[batch][None], problem.batches))


def _size(state: LiSSAState) -> int:
    return trees.size(state.problem.params)
