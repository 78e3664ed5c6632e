"""Ritz pairs against scipy and dense eigenpairs, on prescribed simple and repeated spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from influence_ssl_jax.linalg.krylov import leading_eigenpairs

SIZE = 24


def with_spectrum(values, seed=0):
    orthogonal = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (orthogonal * values) @ orthogonal.T


SPECTRA = {
    "simple": 2.0 ** -np.arange(SIZE),
    "repeated": np.repeat([5.0, 3.0, 1.0, 0.0], SIZE // 4),
    "indefinite": np.linspace(-4.0, 3.0, SIZE),
    "zero": np.zeros(SIZE),
}


@functools.partial(jax.jit, static_argnames=("rank", "block", "dimension", "restarts"))
def found_in(matrix, seed, rank, block, dimension, restarts=0):
    return leading_eigenpairs(
        lambda rows: rows @ matrix, jax.random.key(seed), matrix[0], rank, block, dimension, restarts
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("block", [1, 5])
def test_the_whole_space_gives_every_eigenpair(spectrum, block):
    """Repeated eigenvalues included, of multiplicity above the block: breakdowns are restarted."""
    values = SPECTRA[spectrum]
    matrix = with_spectrum(values)
    found = found_in(matrix, 0, SIZE, block, SIZE)
    np.testing.assert_allclose(np.sort(found.values), np.sort(values), atol=1e-12)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(SIZE), atol=1e-12)
    np.testing.assert_allclose(found.vectors.T @ (found.values[:, None] * found.vectors), matrix, atol=1e-11)
    np.testing.assert_allclose(found.smallest, values.min(), atol=1e-12)


def test_a_single_vector_finds_a_repeated_eigenvalue_only_by_restart():
    """Four distinct eigenvalues: the Krylov space of one vector ends after four steps with one copy of each."""
    matrix = with_spectrum(SPECTRA["repeated"])
    assert np.sum(np.abs(found_in(matrix, 0, 4, 1, 4).values - 5.0) < 1e-9) == 1
    assert np.sum(np.abs(found_in(matrix, 0, SIZE, 1, SIZE).values - 5.0) < 1e-9) == SIZE // 4


RUNS = pytest.mark.parametrize(("dimension", "restarts"), [(24, 0), (12, 3)])


@RUNS
def test_leading_pairs_are_those_of_scipy(dimension, restarts):
    matrix = with_spectrum(np.concatenate([[9.0, -8.0, 7.0, 7.0], np.linspace(0, 1, 56)]))
    found = found_in(matrix, 1, 4, 2, dimension, restarts)
    want, vectors = scipy.sparse.linalg.eigsh(matrix, k=4, which="LM")
    np.testing.assert_allclose(np.sort(found.values), np.sort(want), atol=1e-6)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, vectors @ vectors.T, atol=1e-3)


@RUNS
def test_coupling_is_the_residual(dimension, restarts):
    matrix = with_spectrum(np.linspace(-4.0, 3.0, 60))
    found = found_in(matrix, 2, 4, 2, dimension, restarts)
    vectors = np.asarray(found.vectors)
    residual = matrix @ vectors.T - vectors.T * np.asarray(found.values)
    np.testing.assert_allclose(np.linalg.norm(found.coupling, axis=1), np.linalg.norm(residual, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.coupling @ found.coupling.T, residual.T @ residual, atol=1e-12)
    assert found.smallest >= -4.0 - 1e-12


def test_more_than_the_space_holds_is_zero():
    matrix = with_spectrum(np.array([3.0, 2.0, 1.0, 1.0, 0.5]))
    found = found_in(matrix, 0, 9, 3, 20)
    assert found.vectors.shape == (5, 5)
    np.testing.assert_allclose(np.sort(found.values), [0.5, 1.0, 1.0, 2.0, 3.0], atol=1e-12)


def test_orthogonal_in_float32():
    matrix = jnp.asarray(with_spectrum(10.0 ** -np.linspace(0, 8, 120)), jnp.float32)
    found = found_in(matrix, 0, 60, 4, 100)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(60), atol=3e-6)
    np.testing.assert_allclose(found.values[:10], 10.0 ** -np.linspace(0, 8, 120)[:10], rtol=1e-5, atol=1e-6)
