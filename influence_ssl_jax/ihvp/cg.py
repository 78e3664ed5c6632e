"""Conjugate gradients: exact solves without the matrix."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.matvec import matvec
from influence_ssl_jax.curvature.trace import mean_eigenvalue
from influence_ssl_jax.ihvp.backend import Backend, Form, Resolved
from influence_ssl_jax.linalg.krylov import smallest_ritz_value
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CGState:
    """The problem itself, with what damping needs to know of its matrix.

    Attributes:
        problem: What products are taken of.
        mean: tr(C)/P.
        smallest: Estimate of the smallest eigenvalue; zero unless the curvature can be indefinite.
    """

    problem: Problem
    mean: Float[Array, ""]
    smallest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class CG(Backend[CGState]):
    """`(C + λI) x = v` by conjugate gradients, one Krylov space per right-hand side.

    Exact up to `tolerance` at any number of parameters; the cost is one product with C per iteration and right-hand side.

    Attributes:
        tolerance: Stop where ‖residual‖ ≤ tolerance · ‖v‖. Below about 1e-6 it takes float64.
        iterations: Stop after so many; what is not solved by then shows in `Form.residual`.
        probes: Random vectors for the mean eigenvalue.
        lanczos_steps: Steps of the estimate of the smallest eigenvalue, for `hessian` curvature alone.
    """

    tolerance: float = 1e-5
    iterations: int = 200
    probes: int = 16
    lanczos_steps: int = 40

    def fit(self, problem: Problem, key: Key[Array, ""]) -> CGState:
        """Estimate the mean eigenvalue and, of a Hessian, the smallest one."""
        mean_key, start_key = jax.random.split(key)
        mean = mean_eigenvalue(problem, mean_key, self.probes)
        if problem.curvature != "hessian":
            return CGState(problem, mean, jnp.zeros_like(mean))
        product = matvec(problem)
        start = trees.ravel(trees.normal_like(start_key, problem.params))

        def flat_product(vector: Float[Array, " size"]) -> Float[Array, " size"]:
            return trees.ravel(product(trees.unravel(problem.params, vector)))

        return CGState(problem, mean, smallest_ritz_value(flat_product, start, self.lanczos_steps))

    def mean_eigenvalue(self, state: CGState) -> Resolved:
        """tr(C)/P, estimated."""
        return state.mean

    def smallest_eigenvalue(self, state: CGState) -> Float[Array, ""]:
        """Estimated by Lanczos for a Hessian, zero otherwise."""
        return state.smallest

    def solve(self, state: CGState, vector: Params, damping: Resolved) -> Params:
        """Iterate from zero."""
        check_structure(state.problem.params, vector)
        return self._solve(state, vector, damping)[0]

    def draw_gram(self, state: CGState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """`⟨g_k, x_l⟩` with every `x_l` solved for, and the worst true residual of each example."""
        rows = gradients.full()
        solved, residual = jax.vmap(lambda v: self._solve(state, v, damping))(rows)
        left, right = (
            trees.ravel_batch(t).reshape(gradients.draws, -1, trees.size(state.problem.params)) for t in (rows, solved)
        )
        values = jnp.einsum("kbp,lbp->bkl", left, right)
        # Solved only to a tolerance, the form is symmetrised: the score does not depend on which side was solved.
        values = (values + jnp.swapaxes(values, 1, 2)) / 2
        return Form(values, jnp.max(residual.reshape(gradients.draws, -1), axis=0))

    def bilinear_form(
        self, state: CGState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """`⟨g_i, x_j⟩` with every `x_j` of the right solved for."""
        solved, _ = jax.vmap(lambda v: self._solve(state, v, damping))(right.full())
        return trees.ravel_batch(left.full()) @ trees.ravel_batch(solved).T

    def _solve(self, state: CGState, vector: Params, damping: Resolved) -> tuple[Params, Float[Array, ""]]:
        """The solution and its true relative residual, from one more product."""
        product = matvec(state.problem)

        def damped(x: Params) -> Params:
            return jax.tree.map(lambda cx, leaf: cx + damping * leaf, product(x), x)

        solution, _ = jax.scipy.sparse.linalg.cg(damped, vector, tol=self.tolerance, atol=0.0, maxiter=self.iterations)
        size = trees.norm(vector)
        miss = trees.norm(jax.tree.map(jnp.subtract, damped(solution), vector))
        return solution, miss / jnp.where(size > 0, size, 1.0)
