"""The Nyström backend against the dense matrix, with either complement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp import Nystrom
from influence_ssl_jax.losses import SquaredEuclid
from tests import problems
from tests.ihvp.dense import dense

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`


def test_exact_once_rank_reaches_that_of_the_matrix():
    """The linear net's matrix has every eigenvalue three times over; below full size the rest is zero curvature."""
    problem, matrix, gradients, rows = dense(module="linear")
    size = len(matrix)
    rank = np.linalg.matrix_rank(matrix, hermitian=True)
    assert rank < size
    damping = 0.1 * np.trace(matrix) / size
    want = rows @ np.linalg.solve(matrix + damping * np.eye(size), rows.T)
    for kept in (rank, size):
        backend = Nystrom(rank=int(kept), probes=2)
        state = jax.jit(backend.fit)(problem, jax.random.key(0))
        np.testing.assert_allclose(float(state.mean), np.trace(matrix) / size, rtol=1e-9)
        got = jax.jit(backend.bilinear_form)(state, gradients, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize("complement", ["zero", "mean"])
def test_below_that_it_is_what_it_says(complement):
    problem, matrix, gradients, rows = dense(module="linear")
    size, rank = len(matrix), 6
    backend = Nystrom(rank=rank, complement=complement, probes=200)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    basis, values = np.asarray(state.vectors), np.asarray(state.eigenvalues)
    kept = (basis.T * values) @ basis
    assert np.linalg.eigvalsh(matrix - kept).min() > -1e-10
    np.testing.assert_allclose(float(state.mean), np.trace(matrix) / size, rtol=0.05)
    level = 0.0 if complement == "zero" else (float(state.mean) * size - values.sum()) / (size - rank)
    whole = kept + level * (np.eye(size) - basis.T @ basis)
    for damping in (0.01, 1.0):
        want = np.einsum("np,np->n", rows, np.linalg.solve(whole + damping * np.eye(size), rows.T).T)
        got = jax.jit(backend.quadratic_form)(state, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_hessian_is_refused():
    with pytest.raises(CurvatureError, match="Nystrom"):
        Nystrom().fit(problems.problem(SquaredEuclid(), "hessian", problems.Linear(), image=3), jax.random.key(0))
