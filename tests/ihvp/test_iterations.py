"""LiSSA and ASTRA against dense solves: damping, their steps, what is left of the residual, and divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import stats

from influence_ssl_jax import trees
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.ihvp import ASTRA, EKFAC, Damping, LiSSA
from tests.ihvp.dense import dense

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`

KEY = jax.random.key(0)


@pytest.mark.parametrize("scale", [None, 1.0, 3.0], ids=["automatic", "largest", "thrice"])
def test_it_solves_with_the_damping_that_it_is_given_whatever_the_scale(scale):
    problem, matrix, _, rows = dense(module="linear")
    largest = np.linalg.eigvalsh(matrix)[-1]
    backend = LiSSA(depth=600, scale=None if scale is None else scale * 1.3 * largest)
    state = jax.jit(backend.fit)(problem, KEY)
    np.testing.assert_allclose(float(state.largest), largest, rtol=0.1)
    for relative in (0.3, 0.2, 0.3):
        damping = relative * largest
        solve = jax.jit(backend.solve)
        got = solve(state, trees.unravel(problem.params, jnp.asarray(rows[0])), jnp.asarray(damping))
        want = np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows[0])
        np.testing.assert_allclose(trees.ravel(got), want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


def test_cut_short_it_is_the_truncated_series_and_says_what_is_left():
    """`Σ_{j<k} (I − (C + λI)/s)^j / s` from the eigenpairs, and the true residual."""
    problem, matrix, gradients, rows = dense(module="linear")
    backend = LiSSA(depth=7)
    state = jax.jit(backend.fit)(problem, KEY)
    damping = 0.05
    scale = 1.25 * float(state.largest) + damping
    values, vectors = np.linalg.eigh(matrix)
    series = sum((1 - (values + damping) / scale) ** j for j in range(7)) / scale
    solved = (rows @ vectors) * series @ vectors.T
    form = jax.jit(backend.draw_gram)(state, gradients, jnp.asarray(damping))
    quadratic = np.einsum("np,np->n", rows, solved).reshape(2, -1)
    np.testing.assert_allclose(np.einsum("bkk->kb", form.values), quadratic, rtol=1e-10)
    left = np.linalg.norm(solved @ (matrix + damping * np.eye(len(matrix))) - rows, axis=1)
    ratio = (left / np.linalg.norm(rows, axis=1)).reshape(2, -1).max(axis=0)
    np.testing.assert_allclose(form.residual, ratio, rtol=1e-8)
    assert float(form.residual.min()) > 0.01


def test_a_scale_that_diverges_is_refused_and_never_hidden():
    problem, matrix, gradients, _ = dense(module="linear")
    largest = np.linalg.eigvalsh(matrix)[-1]
    backend = LiSSA(depth=4000, scale=0.3 * largest)
    state = jax.jit(backend.fit)(problem, KEY)
    with pytest.raises(DivergenceError, match="Use scale=None"):
        backend.resolve(state, Damping(0.1))
    assert float(LiSSA(scale=largest).resolve(state, Damping(0.1))) == pytest.approx(0.1 * float(state.mean))
    form = jax.jit(backend.draw_gram)(state, gradients, jnp.asarray(0.1))
    assert np.isposinf(form.residual).all()


def test_single_batches_of_lissa_are_unbiased_within_their_own_standard_error():
    problem, matrix, gradients, rows = dense(module="linear")
    damping = 0.5 * np.linalg.eigvalsh(matrix)[-1]
    want = np.einsum("np,np->n", rows, np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T)
    backend = LiSSA(depth=40, steps="one", repeats=64)
    state = jax.jit(backend.fit)(problem, KEY)
    got = jax.jit(backend.quadratic_form)(state, gradients, jnp.asarray(damping))
    error = np.asarray(jax.jit(backend.standard_error)(state, gradients, jnp.asarray(damping)))
    assert (error > 0).all()
    assert (error < 0.1 * want).all()
    assert (np.abs(got - want) < 5 * error + 1e-4 * want).all()
    first = jax.tree.map(lambda leaf: leaf[0], gradients.full())
    runs = trees.ravel_batch(jax.jit(backend.runs)(state, first, jnp.asarray(damping))) @ trees.ravel(first)
    np.testing.assert_allclose(error[0], stats.sem(runs), rtol=1e-9)


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


def test_single_batches_of_astra_are_unbiased_within_their_own_standard_error():
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
