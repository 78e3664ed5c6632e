"""What solvers share that iterate on the curvature set: solutions, forms, true residuals, standard errors."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import matvec
from influence_ssl_jax.ihvp.backend import Backend, Form, Resolved, Spectrum, whole
from influence_ssl_jax.ihvp.cg import spectrum_by_products
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params, PyTree

MARGIN = 1.25
"""Over a power iteration's estimate, which is from below; convergence itself needs half the eigenvalue."""

Steps: TypeAlias = Literal["all", "one"]
"""A step takes C of all batches, or that of one batch drawn at random."""


@dataclasses.dataclass(frozen=True)
class IterationState:
    """The problem itself, with what damping and steps need to know of its matrix; further fields are the subclasses'.

    Attributes:
        problem: What products are taken of.
        mean: tr(C)/P.
        error: Relative standard error of it.
        smallest: Estimate of the smallest eigenvalue; zero unless the curvature can be indefinite.
        orders: Which batch each step of each repeat takes; empty where steps take the whole set.
    """

    problem: Problem
    mean: Float[Array, ""]
    error: Float[Array, ""]
    smallest: Float[Array, ""]
    orders: Int[Array, "repeats depth"]


State = TypeVar("State", bound=IterationState)


class Iterations(Backend[State]):  # abstract: `fit` and `runs` are its subclasses'
    """`(C + λI) x = v` by a fixed number of steps; what they leave is measured, with a product of its own."""

    probes: int
    lanczos_steps: int

    @abc.abstractmethod
    def runs(self, state: State, vector: Params, damping: Resolved) -> Params:
        """Every repeat's x, leaves [repeats, …]."""

    def mean_eigenvalue(self, state: State) -> Resolved:
        """tr(C)/P, estimated."""
        return state.mean

    def mean_error(self, state: State) -> Float[Array, ""]:
        """From the spread of the probes."""
        return state.error

    def smallest_eigenvalue(self, state: State) -> Float[Array, ""]:
        """Estimated by Lanczos for a Hessian, zero otherwise."""
        return state.smallest

    def spectrum(self, state: State) -> Spectrum:
        """Estimated by Lanczos quadrature, `lanczos_steps` products with C for each of `probes` random vectors."""
        return spectrum_by_products(state.problem, self.probes, self.lanczos_steps)

    def solve(self, state: State, vector: Params, damping: Resolved) -> Params:
        """The mean of the repeats."""
        check_structure(state.problem.params, vector)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), self.runs(state, vector, damping))

    def draw_gram(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Form:
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
        self, state: State, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """`⟨g_i, x_j⟩` with every `x_j` of the right solved for."""
        solved = jax.vmap(lambda v: self.solve(state, v, damping))(right.full())
        return trees.ravel_batch(left.full()) @ trees.ravel_batch(solved).T

    def standard_error(self, state: State, gradients: ExampleGradients, damping: Resolved) -> Float[Array, " n"]:
        """Standard error of each quadratic form over the repeats; NaN where there is one alone."""
        rows = gradients.full()
        runs = jax.vmap(lambda v: trees.ravel_batch(self.runs(state, v, damping)))(rows)
        values = jnp.einsum("np,nrp->nr", trees.ravel_batch(rows), runs)
        return jnp.std(values, axis=1, ddof=1) / runs.shape[1] ** 0.5


def orders_of(
    problem: Problem, steps: Steps, repeats: int, depth: int, key: Key[Array, ""]
) -> Int[Array, "repeats depth"]:
    """Draw the batch of every step of every repeat; one repeat without steps of its own where each takes all."""
    if steps == "all":
        return jnp.zeros((1, 0), jnp.int32)
    return randomness.integers(key, (repeats, depth), 0, problem.batches.index.shape[0])


Carry = TypeVar("Carry", bound=PyTree)


def iterated(
    state: IterationState,
    step: Callable[[Carry, Params], Carry],
    read: Callable[[Carry], Params],
    start: Carry,
    depth: int,
) -> Params:
    """Repeat `carry ← step(carry, C x)`, x read from the carry, for every repeat's batches: leaves [repeats, …]."""
    if not state.orders.size:
        product = matvec(state.problem)
        found = jax.lax.fori_loop(0, depth, lambda _, carry: step(carry, product(read(carry))), start)
        return jax.tree.map(lambda leaf: leaf[None], read(found))

    def run(order: Int[Array, " depth"]) -> Params:
        def of_batch(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, None]:
            return step(carry, matvec(only(state.problem, i))(read(carry))), None

        return read(jax.lax.scan(of_batch, start, order)[0])

    return jax.lax.map(run, state.orders)


def only(problem: Problem, batch: Int[Array, ""]) -> Problem:
    """The problem of one batch alone."""
    return dataclasses.replace(problem, batches=jax.tree.map(lambda leaf: leaf[batch][None], problem.batches))


def _size(state: IterationState) -> int:
    return trees.size(state.problem.params)
