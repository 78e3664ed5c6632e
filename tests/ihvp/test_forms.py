"""Forms whose small parts no loose tolerance shows: CG's residual correction and Galerkin's coupling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.curvature.blocks import discover_blocks
from influence_ssl_jax.ihvp import Arnoldi, cg
from influence_ssl_jax.ihvp.arnoldi import ArnoldiState, galerkin_interval
from influence_ssl_jax.linalg.krylov import Solutions
from tests.ihvp.dense import dense, single


def test_a_form_has_the_true_residual_of_its_solution_in_it(monkeypatch):
    """`gᵀx + xᵀ(g − A x)` of any x: its error is of second order in that of x, and the residual is told."""
    problem, matrix, gradients, rows = dense(module="linear")
    damping = 0.1 * np.trace(matrix) / len(matrix)
    damped = matrix + damping * np.eye(len(matrix))
    inverse = np.linalg.inv(damped + 1e-3 * np.linalg.norm(matrix) * np.diag(np.arange(len(matrix)) % 3))

    def poor(products, right, *_):
        solutions = right @ jnp.asarray(inverse)
        return Solutions(solutions, right - products(solutions), jnp.zeros((), int))

    monkeypatch.setattr(cg, "block_cg", poor)
    state = cg.CGState(problem, jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), None)
    draws = 2
    form = jax.jit(cg.CG().draw_gram)(state, dataclasses.replace(gradients, draws=draws), jnp.asarray(damping))
    solved = rows @ inverse
    left = rows - solved @ damped
    plain = np.sum(rows * solved, axis=1)
    want = plain + np.sum(solved * left, axis=1)
    np.testing.assert_allclose(np.einsum("bkk->kb", form.values).ravel(), want, rtol=1e-9)
    relative = np.linalg.norm(left, axis=1) / np.linalg.norm(rows, axis=1)
    worst, best = (extreme(relative.reshape(draws, -1), axis=0) for extreme in (np.max, np.min))
    np.testing.assert_allclose(form.residual, worst, rtol=1e-9)
    assert (worst > 1.01 * best).any()
    exact = np.sum(rows * np.linalg.solve(damped, rows.T).T, axis=1)
    assert (np.abs(want - exact) < 0.5 * np.abs(plain - exact)).all()
    assert (np.abs(plain - exact) > 1e-6 * exact).all()


def test_gradients_inside_the_subspace_are_bounded_by_its_coupling():
    """A subspace that holds every gradient leaves nothing outside; what C takes out of it is the whole doubt."""
    problem, matrix, gradients, rows = dense(module="linear")
    basis = np.linalg.qr(rows.T)[0].T
    values, turn = np.linalg.eigh(basis @ matrix @ basis.T)
    vectors = turn.T @ basis
    outside = vectors @ matrix - values[:, None] * vectors
    coupling = np.linalg.qr(outside.T)[1].T
    assert np.linalg.norm(coupling) > 1e-3 * np.linalg.norm(matrix)
    state = ArnoldiState(
        problem.params,
        *map(jnp.asarray, (values, vectors, coupling, 0.0, np.trace(matrix) / len(matrix), 0.0, 0.0)),
        discover_blocks(problem, "error"),
        problem.curvature,
    )
    bounds = jax.jit(galerkin_interval)
    for relative in (0.1, 1.0):
        damping = relative * np.trace(matrix) / len(matrix)
        want = np.sum(rows * np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T, axis=1)
        interval = bounds(state, gradients, jnp.asarray(damping))
        weights = (rows @ vectors.T) / (values + damping)
        galerkin = np.sum(rows @ vectors.T * weights, axis=1)
        np.testing.assert_allclose(interval.lower, galerkin, rtol=1e-9)
        reach = np.linalg.norm(weights @ coupling, axis=1) ** 2 / damping
        np.testing.assert_allclose(interval.upper, galerkin + reach, rtol=1e-4)
        assert (interval.lower <= want).all()
        assert (want <= interval.upper).all()
        assert (want > 1.0001 * np.asarray(interval.lower)).any()


def test_the_galerkin_interval_of_the_shipped_rounding_holds_in_float32():
    """Of the whole space, where rounding alone is left, and on the conv net, whose matrix is a small difference."""
    problem, matrix, gradients, rows = dense()
    problem, gradients = single(problem, gradients)
    backend = Arnoldi(rank=len(matrix), block=2, expansion=1.0, probes=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(3))
    bounds = jax.jit(galerkin_interval)
    for relative in (0.01, 0.1, 1.0, 10.0):
        damping = relative * np.trace(matrix) / len(matrix)
        want = np.sum(rows * np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T, axis=1)
        interval = bounds(state, gradients, jnp.asarray(damping, "float32"))
        assert (interval.lower <= want).all()
        assert (want <= interval.upper).all()
        assert (np.asarray(interval.upper) < 1.1 * np.asarray(interval.lower)).all()
