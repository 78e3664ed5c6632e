"""ASTRA against dense solves: its steps, how long they may be, what is left, and random batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from influence_ssl_jax import trees
from influence_ssl_jax.ihvp import ASTRA, EKFAC, Damping
from tests.ihvp.dense import dense

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `dense.py`

KEY = jax.random.key(0)
SHARES = (1e-5, 3e-4, 0.05, 2.0)  # of the mean eigenvalue: below every λ_j, and between them


@pytest.fixture(scope="module")
def small():
    """The matrix, EK-FAC's, and a fitted ASTRA of few steps."""
    problem, matrix, gradients, rows = dense(module="linear")
    backend = ASTRA(depth=7, samples=4, probes=64)
    state = jax.jit(backend.fit)(problem, KEY)
    identity = jnp.eye(len(matrix))
    inverse = jax.vmap(
        lambda v: EKFAC().solve(state.preconditioner, trees.unravel(problem.params, v), jnp.asarray(1.0))
    )
    kronecker = np.linalg.inv(trees.ravel_batch(jax.jit(inverse)(identity))) - np.eye(len(matrix))
    return backend, state, matrix, kronecker, gradients, rows


def reached(state, matrix, kronecker, damping):
    """The ν that steps go by: of the next λ_j below, from scipy."""
    points = np.asarray(state.dampings)
    at = max(int(np.sum(points <= damping)) - 1, 0)
    eye = np.eye(len(matrix))
    largest = scipy.linalg.eigh(matrix + points[at] * eye, kronecker + points[at] * eye, eigvals_only=True)[-1]
    return max(largest, 1.0) * max(points[0] / damping, 1.0)


def test_steps_are_as_long_as_they_may_be(small):
    backend, state, matrix, kronecker, *_ = small
    for share in SHARES:
        damping = share * float(state.mean)
        want = reached(state, matrix, kronecker, damping)
        got = float(backend._reach(state, jnp.asarray(damping)))
        assert 0.9 * want < got < (1 + 1e-9) * want
        eye = np.eye(len(matrix))
        own = scipy.linalg.eigh(matrix + damping * eye, kronecker + damping * eye, eigvals_only=True)[-1]
        assert 1.25 * got > own  # far below the 2 (1 + β) that momentum allows


def test_cut_short_it_is_gradient_descent_with_momentum_and_says_what_is_left(small):
    backend, state, matrix, kronecker, gradients, rows = small
    damping = 0.5 * float(state.mean)
    form = jax.jit(backend.draw_gram)(state, gradients, jnp.asarray(damping))
    damped, weights = (each + damping * np.eye(len(matrix)) for each in (matrix, kronecker))
    rate = 1 / (1.25 * float(backend._reach(state, jnp.asarray(damping))))
    x, moved = np.zeros_like(rows), np.zeros_like(rows)
    for _ in range(7):
        moved = 0.9 * moved + rate * np.linalg.solve(weights, (rows - x @ damped).T).T
        x = x + moved
    quadratic = np.einsum("np,np->n", rows, x).reshape(2, -1)
    np.testing.assert_allclose(np.einsum("bkk->kb", form.values), quadratic, rtol=1e-8)
    left = np.linalg.norm(x @ damped - rows, axis=1) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(form.residual, left.reshape(2, -1).max(axis=0), rtol=1e-7)
    assert float(form.residual.min()) > 1e-3


def test_it_solves_at_any_damping(small):
    _, state, matrix, _, _, rows = small
    problem = state.problem
    backend = ASTRA(depth=1500)
    solve = jax.jit(backend.solve)
    for share in (2.0, 0.05, 2.0):
        damping = share * float(state.mean)
        got = solve(state, trees.unravel(problem.params, jnp.asarray(rows[0])), jnp.asarray(damping))
        want = np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows[0])
        np.testing.assert_allclose(trees.ravel(got), want, rtol=1e-8, atol=1e-10 * np.abs(want).max())


def test_single_batches_are_unbiased_within_their_own_standard_error():
    problem, matrix, gradients, rows = dense(module="linear")
    backend = ASTRA(depth=60, steps="one", momentum=0.5, samples=4, repeats=48, power_steps=10, probes=4)
    state = jax.jit(backend.fit)(problem, KEY)
    damping = 0.5 * np.linalg.eigvalsh(matrix)[-1]
    want = np.einsum("np,np->n", rows, np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T)
    got = jax.jit(backend.quadratic_form)(state, gradients, jnp.asarray(damping))
    error = np.asarray(jax.jit(backend.standard_error)(state, gradients, jnp.asarray(damping)))
    assert (error > 0).all()
    assert (error < 0.1 * want).all()
    assert (np.abs(got - want) < 5 * error + 1e-3 * want).all()
    assert float(backend.resolve(state, Damping(absolute=damping))) == damping
