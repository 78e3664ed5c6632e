"""Eigenpairs in double precision and the eigenvalues of Kronecker products, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg.kronecker import eigenpairs, kronecker_eigenvalues, stacked_eigenpairs


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("transform", [jax.jit, lambda function: function], ids=["jit", "no_jit"])
def test_single_precision_matrices_are_taken_apart_in_double(x64, transform):
    """Eigenvalues over six orders of magnitude, as numpy finds them in float64; single precision loses the last."""
    with jax.enable_x64(x64):
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
        matrix = ((rotation * np.logspace(3, -3, 30)) @ rotation.T).astype(np.float32)
        values, vectors = transform(eigenpairs)(jnp.asarray(matrix))
        assert values.dtype == vectors.dtype == jnp.float32
        want = np.linalg.eigvalsh((matrix.astype(np.float64) + matrix.T) / 2)[::-1]
        np.testing.assert_allclose(values, np.maximum(want, 0), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(vectors).T @ np.asarray(vectors), np.eye(30), atol=1e-6)


def test_the_largest_are_kept_and_none_is_negative():
    factors = np.stack([np.diag([1.0, 5.0, -1e-18, 3.0]), np.diag([2.0, 0.0, 7.0, 7.0])])
    values, vectors = stacked_eigenpairs(jnp.asarray(factors), 3)
    np.testing.assert_allclose(values, [[5, 3, 1], [7, 7, 2]])
    for matrix, found, basis in zip(factors, values, vectors, strict=True):
        np.testing.assert_allclose(matrix @ basis, basis * found[None], atol=1e-14)
    assert float(eigenpairs(jnp.asarray(factors[0]))[0][-1]) == 0.0


def test_kronecker_eigenvalues():
    rng = np.random.default_rng(0)
    left, right = rng.uniform(size=(2, 3)), rng.uniform(size=(2, 4))
    got = np.asarray(kronecker_eigenvalues(jnp.asarray(left), jnp.asarray(right))).reshape(2, 12)
    for group in range(2):
        dense = np.kron(np.diag(left[group]), np.diag(right[group]))
        np.testing.assert_allclose(got[group], np.diag(dense))
