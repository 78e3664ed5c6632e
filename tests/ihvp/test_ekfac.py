"""EK-FAC and K-FAC where curvature is a Kronecker product, and EK-FAC of low rank, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp import EKFAC, KFAC, Damping, Diagonal
from influence_ssl_jax.losses import CosineDistance
from tests import problems
from tests.ihvp.grid import Deep, example_gradients, given, grid, measured_by, places, with_spectrum

KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize("backend", [EKFAC(), KFAC()], ids=["EKFAC", "KFAC"])


@BOTH
@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [((4.0, 2.0, 1.0, 0.5), (3.0, 1.0, 0.2)), ((2.0, 2.0, 1.0, 0.0), (1.0, 0.5, 0.5))],
    ids=["simple", "repeated"],
)
def test_prescribed_spectra(backend, alpha, sigma):
    """C = A ⊗ S with known eigenvalues, repeated and zero ones too: found, and inverted as the dense matrix is."""
    inputs, cotangents = with_spectrum(alpha, 1), with_spectrum(sigma, 2)
    problem = grid(inputs, cotangents, Deep((3,), bias=False))
    state = jax.jit(backend.fit)(problem, KEY)
    (values,) = state.eigenvalues.values()
    np.testing.assert_allclose(np.sort(values), np.sort(np.outer(alpha, sigma).ravel()), atol=1e-12)
    dense = np.kron(inputs.T @ inputs / 4, cotangents.T @ cotangents / 3)
    vector = np.random.default_rng(0).normal(size=(4, 3))
    for damping in (0.3, 0.01, 0.3):  # another damping is honoured, and leaves nothing behind
        got = backend.solve(state, {"Dense_0": {"kernel": jnp.asarray(vector)}}, jnp.asarray(damping))
        want = np.linalg.solve(dense + damping * np.eye(12), vector.ravel())
        np.testing.assert_allclose(trees.ravel(got), want, rtol=1e-10, atol=1e-12)


@BOTH
@pytest.mark.parametrize("num_batches", [1, 4])
def test_every_block_of_a_deep_linear_net_is_exact(backend, num_batches):
    """With biases, in any number of batches, each block damped by its own mean eigenvalue."""
    rng = np.random.default_rng(0)
    problem = grid(rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), Deep(), num_batches)
    state = jax.jit(backend.fit)(problem, KEY)
    rows = np.asarray(trees.ravel_batch(example_gradients(problem)))
    dense = rows.T @ rows / len(rows)
    damping = backend.resolve(state, Damping(0.2))
    vector = rng.normal(size=rows.shape[1])
    got = np.asarray(trees.ravel(backend.solve(state, trees.unravel(problem.params, jnp.asarray(vector)), damping)))
    for block in state.blocks:
        at = places(problem, block)
        part = dense[np.ix_(at, at)]
        own = 0.2 * np.trace(part) / len(at)
        np.testing.assert_allclose(damping[block.name], own, rtol=1e-10)
        want = np.linalg.solve(part + own * np.eye(len(at)), vector[at])
        np.testing.assert_allclose(got[at], want, rtol=1e-10)
    assert float(damping["Dense_0"]) != pytest.approx(float(damping["Dense_1"]), rel=0.01)


def test_low_rank_keeps_the_leading_eigenvectors_and_the_complement():
    """Against the dense matrix `Q Λ Qᵀ + level (I − QQᵀ)`: solve, and forms through the gradients' norms."""
    rng = np.random.default_rng(5)
    images, cotangents = rng.normal(size=(8, 1, 1, 5)), rng.normal(size=(8, 4))
    problem = given(images, cotangents, np.arange(8), Deep((4,), bias=False))
    backend = EKFAC(rank=2)
    state = jax.jit(backend.fit)(problem, KEY)
    inputs = images[:, 0, 0]
    left = np.linalg.eigh(inputs.T @ inputs)[1][:, -2:]
    right = np.linalg.eigh(cotangents.T @ cotangents)[1][:, -2:]
    basis = np.einsum("ik,ol->iokl", left, right).reshape(20, 4)
    rows = np.einsum("ni,no->nio", inputs, cotangents).reshape(8, 20)
    values = np.mean((rows @ basis) ** 2, axis=0)
    level = (np.mean(np.sum(rows**2, axis=1)) - values.sum()) / 16
    dense = (basis * values) @ basis.T + level * (np.eye(20) - basis @ basis.T)
    gradients = measured_by(problem)
    gradient_rows = np.asarray(trees.ravel_batch(gradients.full()))
    for damping in (0.05, 2.0):
        want = gradient_rows @ np.linalg.solve(dense + damping * np.eye(20), gradient_rows.T)
        got = backend.bilinear_form(state, gradients, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(got, want, rtol=1e-10)
        np.testing.assert_allclose(
            backend.quadratic_form(state, gradients, jnp.asarray(damping)), np.diag(want), rtol=1e-10
        )


@pytest.mark.parametrize("backend", [EKFAC(), KFAC(), Diagonal()], ids=lambda backend: type(backend).__name__)
def test_a_hessian_is_refused(backend):
    problem = problems.problem(CosineDistance(), "hessian", module=problems.Small())
    with pytest.raises(CurvatureError, match="use CG or Exact"):
        backend.fit(problem, KEY)
