"""The diagonal backend: exact where curvature is diagonal."""

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import trees
from influence_ssl_jax.ihvp import Diagonal
from tests.ihvp.grid import Deep, grid, measured_by


def test_exact_on_a_diagonal_matrix():
    """Inputs along the axes meet cotangents along the axes: `C = diag(α ⊗ σ)`."""
    alpha, sigma = np.array([4.0, 4.0, 0.25, 0.0]), np.array([1.0, 9.0])
    problem = grid(np.diag(np.sqrt(4 * alpha)), np.diag(np.sqrt(2 * sigma)), Deep((2,), bias=False))
    backend = Diagonal()
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    diagonal = np.outer(alpha, sigma).ravel()
    np.testing.assert_allclose(state.eigenvalues["Dense_0"], diagonal, rtol=1e-12)
    gradients = measured_by(problem)
    rows = np.asarray(trees.ravel_batch(gradients.full()))
    for damping in (0.1, 5.0, 0.1):
        got = backend.bilinear_form(state, gradients, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(got, rows / (diagonal + damping) @ rows.T, rtol=1e-12)
