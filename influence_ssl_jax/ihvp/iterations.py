"""Solve by a fixed number of steps: LiSSA and ASTRA."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products, matvec, mean_eigenvalue
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.ihvp.backend import Backend, Damping, Form, Grid, Resolved, Spectrum, scalar
from influence_ssl_jax.ihvp.cg import spectrum_by_products
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisState, refuse_hessian
from influence_ssl_jax.ihvp.ekfac import EKFAC
from influence_ssl_jax.linalg.krylov import largest_eigenvalue, leading_eigenpairs
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params, PyTree

MARGIN = 1.25
"""The factor on a power iteration's estimate, which is a lower bound; convergence needs half of the eigenvalue."""

Steps: TypeAlias = Literal["all", "one"]
"""A step uses C of "all" batches, or that of "one" batch drawn at random."""


@dataclasses.dataclass(frozen=True)
class IterationState:
    """The problem and the properties of its matrix for damping and steps.

    Subclasses add further fields.

    Attributes:
        problem: The problem that products use.
        mean: tr(C)/P.
        error: Its relative standard error.
        smallest: Estimate of the smallest eigenvalue; zero unless the curvature can be indefinite.
        orders: The batch of each step of each repeat; empty if steps use the whole set.
    """

    problem: Problem
    mean: Float[Array, ""]
    error: Float[Array, ""]
    smallest: Float[Array, ""]
    orders: Int[Array, "repeats depth"]


State = TypeVar("State", bound=IterationState)


class Iterations(Backend[State]):  # abstract: subclasses define `fit` and `runs`
    """A backend that solves `(C + λI) x = v` by a fixed number of steps.

    The residual of the last step is measured with a product of its own.
    """

    probes: int
    lanczos_steps: int

    @abc.abstractmethod
    def runs(self, state: State, vector: Params, damping: Resolved) -> Params:
        """Compute every repeat's x, leaves [repeats, …]."""

    def mean_eigenvalue(self, state: State) -> Resolved:
        """Return the estimate of tr(C)/P."""
        return state.mean

    def mean_error(self, state: State) -> Float[Array, ""]:
        """Return the relative standard error, from the spread of the probes."""
        return state.error

    def smallest_eigenvalue(self, state: State) -> Float[Array, ""]:
        """Return the Lanczos estimate for a Hessian, zero otherwise."""
        return state.smallest

    def spectrum(self, state: State) -> Spectrum:
        """Estimate the spectrum by Lanczos quadrature.

        It needs `lanczos_steps` products with C for each of `probes` random vectors.
        """
        return spectrum_by_products(state.problem, self.probes, self.lanczos_steps)

    def solve(self, state: State, vector: Params, damping: Resolved) -> Params:
        """Compute the mean of the repeats."""
        check_structure(state.problem.params, vector)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), self.runs(state, vector, damping))

    def draw_gram(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute `⟨g_k, x_l⟩` for every solution `x_l`, symmetrised.

        The residual is the worst true residual of each example. It is infinite, never NaN, if a run overflowed.
        """
        rows = gradients.full()
        product, value = matvec(state.problem), scalar(damping)

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
        self, state: State, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute `⟨g_i, x_j⟩` for every solution `x_j` of the right side."""
        solved = jax.vmap(lambda v: self.solve(state, v, damping))(right.full())
        return trees.ravel_batch(left.full()) @ trees.ravel_batch(solved).T

    def standard_error(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """Compute the standard error of each quadratic form over the repeats.

        It is NaN for a single repeat.
        """
        rows = gradients.full()
        runs = jax.vmap(lambda v: trees.ravel_batch(self.runs(state, v, damping)))(rows)
        values = jnp.einsum("np,nrp->nr", trees.ravel_batch(rows), runs)
        return jnp.std(values, axis=1, ddof=1) / runs.shape[1] ** 0.5


def draw_orders(
    problem: Problem, steps: Steps, repeats: int, depth: int, key: Key[Array, ""]
) -> Int[Array, "repeats depth"]:
    """Draw the batch of every step of every repeat.

    If steps use all batches, there is one repeat, without a drawn order.
    """
    if steps == "all":
        return jnp.zeros((1, 0), jnp.int32)
    return randomness.integers(key, (repeats, depth), 0, problem.batches.index.shape[0])


Carry = TypeVar("Carry", bound=PyTree)


def iterate(
    state: IterationState,
    step: Callable[[Carry, Params], Carry],
    read: Callable[[Carry], Params],
    start: Carry,
    depth: int,
) -> Params:
    """Repeat `carry ← step(carry, C x)`, where x is read from the carry.

    Args:
        state: The fitted state, which has the batches of every repeat.
        step: One step.
        read: Reads x from the carry.
        start: The first carry.
        depth: Number of steps.

    Returns:
        Every repeat's x, leaves [repeats, …].
    """
    if not state.orders.size:
        product = matvec(state.problem)
        last = jax.lax.fori_loop(0, depth, lambda _, carry: step(carry, product(read(carry))), start)
        return jax.tree.map(lambda leaf: leaf[None], read(last))

    def run(order: Int[Array, " depth"]) -> Params:
        def of_batch(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, None]:
            return step(carry, matvec(single_batch(state.problem, i))(read(carry))), None

        return read(jax.lax.scan(of_batch, start, order)[0])

    return jax.lax.map(run, state.orders)


def single_batch(problem: Problem, batch: Int[Array, ""]) -> Problem:
    """Return the problem of one batch alone."""
    return dataclasses.replace(problem, batches=jax.tree.map(lambda leaf: leaf[batch][None], problem.batches))


def _size(state: IterationState) -> int:
    """Count the parameters."""
    return trees.size(state.problem.params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiSSAState(IterationState):
    """The fitted state of LiSSA.

    Attributes:
        largest: Lower estimate of the largest eigenvalue of C; if steps use single batches, of that of any batch's C.
    """

    largest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class LiSSA(Iterations[LiSSAState]):
    """LiSSA: `x ← x + (v − (C + λI) x) / scale`, `depth` times from zero.

    This is a Neumann series of `(C + λI)⁻¹ v`. λ is the λ of `(C + λI)⁻¹` for every scale. (Other
    implementations use the recursion `u ← v + (1−d)u − Cu/s` and return `u/s`, which solves with λ = d·s.) It
    converges if `2 · scale > μ_max + λ`; after `depth` steps the residual is at most `(1 − λ/scale)^depth` of
    v if scale ≥ μ_max + λ, and `Form.residual` is the measured one.
    Reference: arXiv 1602.03943; arXiv 1703.04730.

    Attributes:
        depth: Number of steps.
        steps: Each step uses C of "all" batches, which makes the approximation one polynomial of C; or of "one" batch
            drawn at random, which is unbiased as depth grows, and noisy (`standard_error`).
        scale: Divisor of each step; if None, it follows from the largest eigenvalue, estimated by power iteration.
        repeats: Independent runs to average, if steps use "one" batch.
        power_steps: Steps of that power iteration.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the smallest eigenvalue, for `hessian` curvature only, and of the
            spectrum, for damping by effective dimension only.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.LiSSA(depth=2000)  # isj.score(encoder, images, backend=backend)
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
        """Estimate the largest and the mean eigenvalue, and draw the batches.

        For a Hessian, the smallest eigenvalue is estimated too.
        """
        mean_key, power_key, order_key, start_key = jax.random.split(key, 4)
        like, count = trees.ravel(problem.params), problem.batches.index.shape[0]
        mean, error = mean_eigenvalue(problem, mean_key, self.probes)
        if self.steps == "all":
            largest = largest_eigenvalue(flat_products(problem), power_key, like, self.power_steps)
        else:
            largest = jnp.max(
                jax.lax.map(
                    lambda i: largest_eigenvalue(
                        flat_products(single_batch(problem, i)),
                        jax.random.fold_in(power_key, i),
                        like,
                        self.power_steps,
                    ),
                    jnp.arange(count),
                )
            )
        smallest = jnp.zeros_like(mean)
        if problem.curvature == "hessian":
            smallest = leading_eigenpairs(flat_products(problem), start_key, like, 1, 1, self.lanczos_steps).smallest
        orders = draw_orders(problem, self.steps, self.repeats, self.depth, order_key)
        return LiSSAState(problem, mean, error, smallest, orders, largest)

    def resolve(self, state: LiSSAState, damping: Damping) -> Resolved:
        """Return λ as a number.

        Raises:
            DivergenceError: If the given scale is too small for this matrix.
        """
        resolved = scalar(Backend.resolve(self, state, damping))
        reach = float(state.largest + resolved)
        if self.scale is not None and 2 * self.scale <= reach:
            raise DivergenceError(
                f"LiSSA diverges: its steps are divided by scale={self.scale:.4g} and converge only above half of the "
                f"largest eigenvalue of C + λI, which is at least {reach:.4g}. Use scale=None, which chooses one, or a "
                f"scale of about {MARGIN * reach:.4g}."
            )
        return resolved

    def runs(self, state: LiSSAState, vector: Params, damping: Resolved) -> Params:
        """Compute every repeat's x, leaves [repeats, …]."""
        value = scalar(damping)
        scale = MARGIN * state.largest + value if self.scale is None else self.scale

        def step(x: Params, cx: Params) -> Params:
            return jax.tree.map(lambda a, ca, v: a + (v - ca - value * a) / scale, x, cx, vector)

        return iterate(state, step, lambda x: x, jax.tree.map(jnp.zeros_like, vector), self.depth)


_DAMPINGS = (1e-4, 1e-2, 1.0, 100.0)
"""The values of λ, over the mean eigenvalue, at which the fit estimates the length of a step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ASTRAState(IterationState):
    """The fitted state of ASTRA: an EK-FAC and a step length.

    Attributes:
        preconditioner: K.
        dampings: λ_j, ascending.
        reach: Lower estimates of the largest eigenvalue ν_j of `(K + λ_j I)⁻¹(C + λ_j I)`; if steps use single
            batches, for the C of any batch.
    """

    preconditioner: EigenbasisState
    dampings: Float[Array, " points"]
    reach: Float[Array, " points"]


@dataclasses.dataclass(frozen=True)
class ASTRA(Iterations[ASTRAState]):
    """ASTRA: gradient descent with momentum, preconditioned by EK-FAC.

    `d ← β d + α (K + λI)⁻¹ (v − (C + λI) x)`, `x ← x + d`, `depth` times from zero; K is an EK-FAC of C. The steps
    minimise `½xᵀ(C + λI)x − vᵀx`, and the preconditioner evens out the directions in which LiSSA's steps are slow.
    The steps converge if α is below 2(1 + β)/ν, where ν is the largest eigenvalue of `(K + λI)⁻¹(C + λI)`; α is
    1/(1.25 ν). ν decreases with λ if it is above 1. So the fit estimates it at four λ, and its value at the largest of
    these that is not above the requested λ is a bound. `Form.residual` is the measured residual after `depth` steps.
    With `steps="one"` this bound holds for each batch alone, and does not ensure convergence: at λ = 0.01 × the mean
    eigenvalue and batches of 16 the steps diverged between 100 and 400 (`benchmarks/solvers.py`), which the residual shows.
    Reference: arXiv 2507.14740 (with `steps="one"`, whose noise ends on a plateau that falls with α:
    `standard_error`).

    Attributes:
        depth: Number of steps.
        steps: Each step uses C of "all" batches, which makes the approximation symmetric and a score independent of
            the others; or of "one" batch drawn at random, as published.
        momentum: β.
        samples: Draws of the EK-FAC, for each example or for each batch of a batch-coupled loss.
        repeats: Independent runs to average, if steps use "one" batch.
        power_steps: Steps of the power iteration for ν.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the spectrum, for damping by effective dimension only.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.ASTRA(depth=50)  # isj.score(encoder, images, backend=backend)
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
    vectors_per_draw: ClassVar[int] = 8  # for the gradient, the steps and the product; 7.4 measured
    when_to_use: ClassVar[str] = "To repeat published results; CG with EK-FAC is as cheap."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(depth, samples=grid.samples, probes=grid.probes) for depth in grid.depths)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> ASTRAState:
        """Fit the EK-FAC, estimate mean eigenvalue and ν, draw the batches.

        Raises:
            CurvatureError: If the curvature is a Hessian, which has no EK-FAC.
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
            return jnp.max(
                jax.lax.map(lambda i: self._largest(single_batch(problem, i), other, damping, power_key), numbers)
            )

        return ASTRAState(
            problem=problem,
            mean=average,
            error=error,
            smallest=jnp.zeros_like(average),
            orders=draw_orders(problem, self.steps, self.repeats, self.depth, order_key),
            preconditioner=other,
            dampings=dampings,
            reach=jax.lax.map(reach, dampings),
        )

    def runs(self, state: ASTRAState, vector: Params, damping: Resolved) -> Params:
        """Compute every repeat's x, leaves [repeats, …]."""
        value = scalar(damping)
        rate = 1 / (MARGIN * self._reach(state, value))
        precondition = partial(EKFAC().solve, state.preconditioner, damping=value)

        def step(carry: tuple[Params, Params], cx: Params) -> tuple[Params, Params]:
            x, moved = carry
            left = jax.tree.map(lambda v, ca, a: v - ca - value * a, vector, cx, x)
            moved = jax.tree.map(lambda d, p: self.momentum * d + rate * p, moved, precondition(left))
            return jax.tree.map(jnp.add, x, moved), moved

        zero = jax.tree.map(jnp.zeros_like, vector)
        return iterate(state, step, lambda carry: carry[0], (zero, zero), self.depth)

    def _reach(self, state: ASTRAState, damping: Float[Array, ""]) -> Float[Array, ""]:
        """Bound ν at λ.

        The bound is that at the largest λ_j not above λ; below all of them it is `ν_1 λ_1/λ`.
        `C + λ_jI ≼ ν_j (K + λ_jI)` and ν_j ≥ 1 give `C + λI ≼ ν_j (K + λI)` for λ ≥ λ_j; and below λ_1,
        `C + λI ≼ C + λ_1I ≼ ν_1 (K + λ_1I) ≼ ν_1 (λ_1/λ) (K + λI)`.
        """
        below = jnp.maximum(jnp.sum(state.dampings <= damping) - 1, 0)
        return jnp.maximum(state.reach[below], 1.0) * jnp.maximum(state.dampings[0] / damping, 1.0)

    def _largest(
        self, problem: Problem, preconditioner: EigenbasisState, damping: Float[Array, ""], key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """Estimate ν from below by a power iteration.

        Its steps are `v ← (K + λI)⁻¹ M v` with `M = C + λI`; the estimate is `vᵀMv / vᵀ(K + λI)v`, which rises to ν.
        """
        product = matvec(problem)

        def times(v: Params) -> Params:
            return jax.tree.map(lambda cv, a: cv + damping * a, product(v), v)

        def step(carry: tuple[Params, Array], _: None) -> tuple[tuple[Params, Array], None]:
            image, _rise = carry
            v = EKFAC().solve(preconditioner, image, damping)
            size = jnp.sqrt(trees.dot(v, image))  # the norm of v with respect to K + λI
            image = jax.tree.map(lambda leaf: leaf / size, times(v))
            return (image, trees.dot(v, image) / size), None

        start = trees.unravel(problem.params, randomness.normal(key, (trees.size(problem.params),), damping.dtype))
        (_, rise), _ = jax.lax.scan(step, (start, jnp.zeros((), damping.dtype)), None, self.power_steps)
        return rise
