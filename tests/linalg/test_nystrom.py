"""The Nyström approximation of matrices with prescribed spectra, against its definition with a pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg.nystrom import nystrom
from influence_ssl_jax.linalg.projection import random_orthonormal

SPECTRA = {
    "simple": 2.0 ** -np.arange(12),
    "repeated": np.repeat([3.0, 1.0, 0.25], 4),
    "singular": np.r_[np.repeat(2.0, 3), 1.0, np.zeros(8)],
    "zero": np.zeros(12),
}


def matrix(spectrum):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    return (rotation * spectrum) @ rotation.T


@pytest.mark.parametrize("name", SPECTRA)
def test_against_the_pseudo_inverse_and_exact_at_full_rank(name):
    dense = matrix(SPECTRA[name])
    size = max(np.abs(dense).max(), 1e-300)
    key, like = jax.random.key(1), jnp.zeros(12)
    for rank in (5, 12):
        found = jax.jit(
            lambda rank: nystrom(lambda rows: rows @ jnp.asarray(dense), key, like, rank), static_argnums=0
        )(rank)
        got = np.asarray((found.vectors.T * found.eigenvalues[None]) @ found.vectors)
        test = np.asarray(random_orthonormal(key, 12, rank, jnp.float64))
        want = dense @ test @ np.linalg.pinv(test.T @ dense @ test, rcond=1e-12, hermitian=True) @ test.T @ dense
        np.testing.assert_allclose(got, want, atol=1e-10 * size)
        assert np.linalg.eigvalsh(dense - got).min() > -1e-10 * size  # never above the matrix
        np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(rank), atol=1e-10)
        assert (np.diff(found.eigenvalues) <= 1e-12 * size).all()
        if rank >= np.sum(SPECTRA[name] > 0):
            np.testing.assert_allclose(got, dense, atol=1e-10 * size)
