"""Eigenpairs, random bases and the Nyström approximation against numpy and their definitions."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg import lowrank
from influence_ssl_jax.linalg.lowrank import (
    eigenpairs,
    kronecker_eigenvalues,
    leading_eigenvectors,
    nystrom,
    random_basis,
    random_orthonormal,
    stacked_eigenpairs,
)


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
    for matrix, kept, basis in zip(factors, values, vectors, strict=True):
        np.testing.assert_allclose(matrix @ basis, basis * kept[None], atol=1e-14)
    assert float(eigenpairs(jnp.asarray(factors[0]))[0][-1]) == 0.0


def test_kronecker_eigenvalues():
    rng = np.random.default_rng(0)
    left, right = rng.uniform(size=(2, 3)), rng.uniform(size=(2, 4))
    got = np.asarray(kronecker_eigenvalues(jnp.asarray(left), jnp.asarray(right))).reshape(2, 12)
    for group in range(2):
        dense = np.kron(np.diag(left[group]), np.diag(right[group]))
        np.testing.assert_allclose(got[group], np.diag(dense))


@pytest.mark.parametrize("rank", [2, 8])
def test_random_bases(rank):
    keys = jax.random.split(jax.random.key(0), 2000)
    bases = jax.jit(jax.vmap(lambda key: random_basis(key, 8, rank, jnp.float64)))(keys)
    vector = np.random.default_rng(0).normal(size=8)
    norms = np.sum((vector @ np.asarray(bases)) ** 2, axis=1)
    assert abs(norms.mean() - vector @ vector) <= 5 * norms.std() / 2000**0.5 + 1e-9
    np.testing.assert_allclose(np.var(bases), 1 / rank, rtol=0.05)  # entries have variance 1/rank, not 1/size
    basis = random_orthonormal(keys[0], 8, rank, jnp.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)


def test_leading_eigenvectors_belong_to_the_largest_eigenvalues():
    np.testing.assert_allclose(
        np.abs(leading_eigenvectors(jnp.diag(jnp.array([1.0, 5.0, 3.0])), 2)).T, np.eye(3)[[1, 2]]
    )


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
        pairs = jax.jit(
            lambda rank: nystrom(lambda rows: rows @ jnp.asarray(dense), key, like, rank), static_argnums=0
        )(rank)
        got = np.asarray((pairs.vectors.T * pairs.eigenvalues[None]) @ pairs.vectors)
        test = np.asarray(random_orthonormal(key, 12, rank, jnp.float64))
        want = dense @ test @ np.linalg.pinv(test.T @ dense @ test, rcond=1e-12, hermitian=True) @ test.T @ dense
        np.testing.assert_allclose(got, want, atol=1e-10 * size)
        assert np.linalg.eigvalsh(dense - got).min() > -1e-10 * size  # never above the matrix
        np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(rank), atol=1e-10)
        assert (np.diff(pairs.eigenvalues) <= 1e-12 * size).all()
        if rank >= np.sum(SPECTRA[name] > 0):
            np.testing.assert_allclose(got, dense, atol=1e-10 * size)


def test_the_shift_of_nystrom_is_taken_off_again(monkeypatch):
    """A thousand times as large as a rounding, it still changes no eigenvalue at full rank."""
    coarse = types.SimpleNamespace(eps=1e-3, tiny=np.finfo(float).tiny)
    monkeypatch.setattr(lowrank, "jnp", types.SimpleNamespace(**{**vars(jnp), "finfo": lambda _: coarse}))
    dense = matrix(np.linspace(0.1, 1, 12))
    pairs = nystrom(lambda rows: rows @ jnp.asarray(dense), jax.random.key(1), jnp.zeros(12), 12)
    np.testing.assert_allclose(np.sort(pairs.eigenvalues), np.linalg.eigvalsh(dense), rtol=1e-9)
