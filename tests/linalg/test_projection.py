"""Random bases keep norms in expectation; leading eigenvectors lead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg.projection import leading_eigenvectors, random_basis, random_orthonormal


@pytest.mark.parametrize("rank", [2, 8])
def test_random_bases(rank):
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.jit(jax.vmap(lambda key: random_basis(key, 8, rank, jnp.float64)))(keys)
    vector = np.random.default_rng(0).normal(size=8)
    norms = np.sum((vector @ np.asarray(found)) ** 2, axis=1)
    assert abs(norms.mean() - vector @ vector) <= 5 * norms.std() / 2000**0.5 + 1e-9
    np.testing.assert_allclose(np.var(found), 1 / rank, rtol=0.05)  # entries have variance 1/rank, not 1/size
    basis = random_orthonormal(keys[0], 8, rank, jnp.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)


def test_leading_eigenvectors_belong_to_the_largest_eigenvalues():
    np.testing.assert_allclose(
        np.abs(leading_eigenvectors(jnp.diag(jnp.array([1.0, 5.0, 3.0])), 2)).T, np.eye(3)[[1, 2]]
    )
