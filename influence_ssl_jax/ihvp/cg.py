"""Solve with C by conjugate gradients: matrix-free, to any accuracy."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.contributions import row_count
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products, mean_eigenvalue
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Resolved, Spectrum, scalar
from influence_ssl_jax.linalg.krylov import Solutions, block_cg, leading_eigenpairs
from influence_ssl_jax.linalg.quadrature import Density, spectral_density
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Params

Draws: TypeAlias = Float[Array, "draws batch size"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CGState:
    """The problem, with the properties of its matrix that damping needs.

    Attributes:
        problem: The problem that products use.
        mean: tr(C)/P.
        error: Its relative standard error.
        smallest: Estimate of the smallest eigenvalue; zero unless the curvature can be indefinite.
        preconditioner: The fitted preconditioner's state, if there is one.
    """

    problem: Problem
    mean: Float[Array, ""]
    error: Float[Array, ""]
    smallest: Float[Array, ""]
    preconditioner: Any


@dataclasses.dataclass(frozen=True)
class CG(Backend[CGState]):
    """Conjugate gradients: `(C + λI) x = v` up to a tolerance.

    They work for any number of parameters. The draws of an example share a block Krylov space
    (`linalg.krylov.block_cg`). The cost is one product with C for each iteration and right-hand side. A form is
    computed as `gᵀx + xᵀr`, where r is the true residual: its error `rᵀ(C + λI)⁻¹r` is of second order in r.

    Attributes:
        tolerance: Stop if ‖residual‖ ≤ tolerance · ‖v‖. Below about 1e-6 it needs float64.
        iterations: Stop after this number; `Form.residual` shows what is not solved by then.
        preconditioner: Another backend, fitted to the same problem, whose `solve` at the same damping replaces the
            identity; on the command line its name, in lower case. It changes the number of iterations, not the
            solution.
        shared: Number of examples that share a Krylov space. More of them need fewer iterations (an encoder of
            digits, 4 draws, to 1e-5: 88 for a gradient alone, 57 for an example's draws, 29 for 4 examples, 13 for
            16). Then a score depends on the examples beside it: within `tolerance`, or by the missing part if
            `iterations` end earlier.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the smallest eigenvalue, for `hessian` curvature only, and of the
            spectrum, for damping by effective dimension only.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.CG(preconditioner=isj.EKFAC(rank=64))  # isj.score(encoder, images, backend=backend)
    """

    tolerance: float = 1e-5
    iterations: int = 200
    preconditioner: Backend | None = None
    shared: int = 1
    probes: int = 16
    lanczos_steps: int = 40
    vectors_per_draw: ClassVar[int] = 14  # for the gradient, the iteration and the product; 10 to 12.2 measured
    when_to_use: ClassVar[str] = "Any accuracy at any size, with tens of products with C per image."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(tolerance=0.0, iterations=steps, probes=grid.probes) for steps in grid.iterations)

    def __post_init__(self) -> None:
        """Refuse a preconditioner that drops directions, and what no backend takes."""
        super().__post_init__()
        if self.preconditioner is not None and not self.preconditioner.definite:
            raise InfluenceError(
                f"A preconditioner must be positive definite, and {self.preconditioner} drops everything outside its "
                "subspace, which CG would then never reach. Use complement='keep', or another backend."
            )

    def fit(self, problem: Problem, key: Key[Array, ""]) -> CGState:
        """Estimate the mean eigenvalue, and fit the preconditioner.

        For a Hessian, the smallest eigenvalue is estimated too.
        """
        mean_key, start_key, other_key = jax.random.split(key, 3)
        mean, error = mean_eigenvalue(problem, mean_key, self.probes)
        smallest = jnp.zeros_like(mean)
        if problem.curvature == "hessian":
            like = trees.ravel(problem.params)
            steps = self.lanczos_steps
            smallest = leading_eigenpairs(flat_products(problem), start_key, like, 1, 1, steps).smallest
        other = None if self.preconditioner is None else self.preconditioner.fit(problem, other_key)
        return CGState(problem, mean, error, smallest, other)

    def mean_eigenvalue(self, state: CGState) -> Resolved:
        """Return the estimate of tr(C)/P."""
        return state.mean

    def mean_error(self, state: CGState) -> Float[Array, ""]:
        """Return the relative standard error, from the spread of the probes."""
        return state.error

    def smallest_eigenvalue(self, state: CGState) -> Float[Array, ""]:
        """Return the Lanczos estimate for a Hessian, zero otherwise."""
        return state.smallest

    def spectrum(self, state: CGState) -> Spectrum:
        """Estimate the spectrum by Lanczos quadrature.

        It needs `lanczos_steps` products with C for each of `probes` random vectors.
        """
        return spectrum_by_products(state.problem, self.probes, self.lanczos_steps)

    def solve(self, state: CGState, vector: Params, damping: Resolved) -> Params:
        """Solve for one vector, from zero."""
        check_structure(state.problem.params, vector)
        solved = self._solve(state, trees.ravel(vector)[None], damping)
        return trees.unravel(vector, solved.solutions[0])

    def draw_gram(self, state: CGState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute `⟨g_k, x_l⟩ + ⟨x_k, r_l⟩` for every solution `x_l`.

        The residual is the worst true residual of each example.
        """
        rows, solved, missing = self._solve_all(state, gradients, damping)
        values = jnp.einsum("kbp,lbp->bkl", rows, solved) + jnp.einsum("kbp,lbp->bkl", solved, missing)
        size = jnp.linalg.norm(rows, axis=2)
        relative = jnp.linalg.norm(missing, axis=2) / jnp.where(size > 0, size, 1.0)
        return Form(values, jnp.max(relative, axis=0))

    def bilinear_form(
        self, state: CGState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute `⟨g_i, x_j⟩` for every solution `x_j` of the right side.

        Its error is of first order in the residuals of the solutions; that of a quadratic form is of second order.
        """
        _, solved, _ = self._solve_all(state, right, damping)
        return trees.ravel_batch(left.full()) @ solved.reshape(-1, solved.shape[-1]).T

    def _solve_all(self, state: CGState, gradients: ExampleGradients, damping: Resolved) -> tuple[Draws, Draws, Draws]:
        """Return every gradient, its solution and its residual."""
        rows = trees.ravel_batch(gradients.full())
        rows = rows.reshape(gradients.draws, -1, rows.shape[1])
        draws, batch, size = rows.shape
        groups = -(-batch // self.shared)
        each = -(-batch // groups)
        even = jnp.pad(rows, ((0, 0), (0, groups * each - batch), (0, 0)))

        def ungroup(blocks: Array) -> Draws:
            split = blocks.reshape(groups, draws, each, size)
            return jnp.moveaxis(split, 1, 0).reshape(draws, -1, size)[:, :batch]

        blocks = jnp.moveaxis(even.reshape(draws, groups, each, size), 0, 1).reshape(groups, -1, size)
        solved = jax.vmap(lambda block: self._solve(state, block, damping))(blocks)
        return rows, ungroup(solved.solutions), ungroup(solved.residuals)

    def _solve(self, state: CGState, rows: Float[Array, "rows size"], damping: Resolved) -> Solutions:
        """Solve one block."""
        value, product = scalar(damping), flat_products(state.problem)
        unravel = partial(trees.unravel, state.problem.params)

        def damped(rows: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
            return product(rows) + value * rows

        def precondition(rows: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
            if self.preconditioner is None:
                return rows
            solve = partial(self.preconditioner.solve, state.preconditioner, damping=value)
            return trees.ravel_batch(jax.vmap(lambda row: solve(unravel(row)))(rows))

        return block_cg(damped, rows, self.tolerance, self.iterations, precondition)


def spectrum_by_products(problem: Problem, probes: int, steps: int) -> Spectrum:
    """Estimate the eigenvalues of C from products, with a rank bound.

    The bound is the number of outer products that C is a sum of.

    Args:
        problem: The problem.
        probes: Number of random vectors.
        steps: Number of Lanczos steps for each.

    Raises:
        CurvatureError: If C is a Hessian, which is indefinite.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "An effective dimension, or a mean over nonzero eigenvalues, needs a positive semi-definite C, got "
            "curvature='hessian'; use 'ggn', 'fisher' or 'empirical_fisher', or give relative or absolute damping."
        )

    @jax.jit
    def density(problem: Problem) -> Density:
        like = trees.ravel(problem.params)
        return spectral_density(flat_products(problem), randomness.root(0, Stream.SPECTRUM), like, probes, steps)

    rank = min(row_count(problem, None), trees.size(problem.params))
    points = density(problem)
    return Spectrum(points.values, points.counts, rank, probes=probes, runs=points.t)
