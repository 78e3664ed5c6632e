"""The effective ridge: the root of its equation, and the mean inverse of random matrices of few rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from influence_ssl_jax import trees
from influence_ssl_jax.ihvp import EKFAC
from influence_ssl_jax.ihvp.eigenbasis import effective_ridge
from tests.ihvp.fitted import PROBLEMS, gradient_rows

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py`


@pytest.mark.parametrize("damping", [1e-8, 1e-2, 1e3])
def test_it_is_the_root_of_its_equation(damping):
    """With eigenvalues over eight decades, some of them zero, in two parts; from scipy."""
    values, counts = np.append(10.0 ** np.arange(-6, 3), 0.0), np.array([1.0, 2, 3, 5, 5, 5, 5, 2, 1, 40])
    parts = [(jnp.asarray(values[:4]), jnp.asarray(counts[:4])), (jnp.asarray(values[4:]), jnp.asarray(counts[4:]))]
    got = effective_ridge(parts, jnp.asarray(20.0), jnp.asarray(damping))

    def left(k):
        return k - np.sum(counts * values / (values + k)) * k / 20 - damping

    want = scipy.optimize.brentq(left, damping, damping + np.sum(counts * values), rtol=1e-14)
    np.testing.assert_allclose(got.ridge, want, rtol=1e-9)
    np.testing.assert_allclose(got.scale, got.ridge / damping)


def test_scores_by_a_second_moment_of_few_rows_are_those_of_its_effective_ridge():
    """Exact forms by 40 random rows of known second moment, 300 directions: 87 % off by λ itself, 3 % by the ridge."""
    rng, size, rows, damping = np.random.default_rng(0), 300, 40, 1e-3
    values = 1 / np.arange(1, size + 1) ** 1.2
    a = rng.normal(size=(rows, size)) * np.sqrt(values / rows)
    g = rng.normal(size=(20, size)) * np.sqrt(values)
    exact = np.sum(g * np.linalg.solve(a.T @ a + damping * np.eye(size), g.T).T, axis=1)
    found = effective_ridge([(jnp.asarray(values), jnp.ones(size))], jnp.asarray(float(rows)), jnp.asarray(damping))
    by_ridge = float(found.scale) * np.sum(g**2 / (values + float(found.ridge)), axis=1)
    by_damping = np.sum(g**2 / (values + damping), axis=1)
    assert abs(np.median(by_ridge / exact) - 1) < 0.1
    assert abs(np.median(by_damping / exact) - 1) > 0.5


@pytest.mark.parametrize("whole", [True, False], ids=["one λ", "a λ for each block"])
def test_ekfac_takes_it_for_the_whole_matrix_or_block_by_block(whole):
    problem = PROBLEMS["cosine"]()
    backend = EKFAC(samples=2, ridge="effective", rank=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    assert float(state.rows) == problem.batches.index.size * 3  # every output of every image
    spectra = {name: each[:2] for name, each in backend.spectrum(state).items()}
    damping = jnp.asarray(0.01) if whole else {name: jnp.asarray(0.01 * (n + 1)) for n, name in enumerate(spectra)}
    vector = trees.unravel(problem.params, jnp.asarray(gradient_rows("cosine")[0]))
    got = jax.jit(backend.solve)(state, vector, damping)
    plain, solve = dataclasses.replace(state, rows=None), jax.jit(backend.solve)
    for block in state.blocks:
        parts = list(spectra.values()) if whole else [spectra[block.name]]
        own = damping if whole else damping[block.name]
        found = effective_ridge(parts, state.rows, own)
        want = block.read(solve(plain, vector, found.ridge)) * found.scale
        np.testing.assert_allclose(block.read(got), want, rtol=1e-9)
