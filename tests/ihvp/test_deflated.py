"""Deflated: exact at full rank, exact along its subspace, and better than both of its parts on a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp import EKFAC, Arnoldi, Deflated, Exact
from tests.ihvp.dense import dense
from tests.ihvp.trained import scored, trained

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`


def test_exact_at_full_rank():
    problem, matrix, gradients, rows = dense(module="linear")
    backend = Deflated(rank=len(matrix), block=2, expansion=1.0)
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    damping = 0.1 * np.trace(matrix) / len(matrix)
    want = rows @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T)
    got = jax.jit(backend.bilinear_form)(state, gradients, gradients, jnp.asarray(damping))
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10 * np.abs(want).max())
    np.testing.assert_allclose(float(state.mean), np.trace(matrix) / len(matrix), rtol=1e-9)


def test_along_its_subspace_it_is_the_matrix_itself():
    """Of an eigenvector v in the subspace, `solve(v) = v / (θ + λ)`; what is outside never leaks into it."""
    problem, matrix, _, _ = dense()
    backend = Deflated(rank=8, block=2, expansion=6.0)
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    values, vectors = np.linalg.eigh(matrix)
    solve, damping = jax.jit(backend.solve), jnp.asarray(0.1 * values.mean())
    for place in (-1, -4):
        v = jnp.asarray(vectors[:, place])
        solved = trees.ravel(solve(state, trees.unravel(problem.params, v), damping))
        np.testing.assert_allclose(solved, v / (values[place] + damping), atol=1e-5 / float(damping))
    outside = jnp.asarray(vectors[:, 0])
    solved = trees.ravel(solve(state, trees.unravel(problem.params, outside), damping))
    np.testing.assert_allclose(vectors[:, -8:].T @ np.asarray(solved), 0, atol=1e-5 / float(damping))


@pytest.mark.slow
def test_it_beats_both_of_its_parts_on_a_trained_network():
    """Median relative error against the dense score, each backend after one multiplicative calibration."""
    problem = trained()
    gradients = scored(problem, 50)
    exact = Exact()
    state = jax.jit(exact.fit)(problem, jax.random.key(0))
    damping = jnp.asarray(0.1 * float(jnp.mean(state.eigenvalues)))
    want = np.asarray(jax.jit(exact.quadratic_form)(state, gradients, damping))

    def error(backend):
        state = jax.jit(backend.fit)(problem, jax.random.key(1))
        ratio = np.asarray(jax.jit(backend.quadratic_form)(state, gradients, damping)) / want
        return float(np.median(np.abs(ratio / np.median(ratio) - 1)))

    deflated = error(Deflated(rank=30, block=4, samples=8))
    assert deflated < error(EKFAC(samples=8))
    assert deflated < error(Arnoldi(rank=30, block=4, probes=32))


def test_the_hessian_is_refused():
    with pytest.raises(CurvatureError, match="positive semi-definite"):
        Deflated().fit(dense("hessian")[0], jax.random.key(0))
