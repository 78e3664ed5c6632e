"""Second moments of fewer samples than features: their eigenpairs, and LoGra by these alone, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.moments import sample_count, sum_over_samples
from influence_ssl_jax.ihvp import EKFAC, KFAC, Damping, Deflated, LoGra, eigenbasis
from influence_ssl_jax.linalg.lowrank import eigenpairs_of_rows
from influence_ssl_jax.losses import BYOL, CosineDistance, SimCLR
from tests.ihvp.grid import Deep, example_gradients, given, measured_by
from tests.problems import Linear, Small, first_batch, problem

RNG = np.random.default_rng(2)


def few(size, decades):
    """Five vectors, from the largest down over some decades, and two zero ones."""
    return np.vstack([RNG.normal(size=(5, size)) * np.logspace(0, -decades / 2, 5)[:, None], np.zeros((2, size))])


@pytest.mark.parametrize("decades", [0, 9, 12])
def test_eigenpairs_of_few_vectors_are_those_of_the_whole_matrix(decades):
    rows = few(40, decades)
    matrix = rows.T @ rows
    values, vectors = eigenpairs_of_rows(jnp.asarray(rows), 5)
    assert vectors.shape == (40, 5)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:5], rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-12)
    np.testing.assert_allclose((vectors * values[None]) @ vectors.T, matrix, atol=1e-13 * np.abs(matrix).max())


def test_eigenvalues_that_are_rounding_and_vectors_of_nothing_are_zero():
    rows = few(40, 2)
    rows[5] = rows[4] * (1 + 1e-15)  # as good as linearly dependent
    values, vectors = eigenpairs_of_rows(jnp.asarray(rows), 7)
    np.testing.assert_array_equal(values[5:], 0)
    np.testing.assert_array_equal(vectors[:, 5:], 0)
    np.testing.assert_allclose(
        (vectors * values[None]) @ vectors.T, rows.T @ rows, atol=1e-13 * np.abs(rows.T @ rows).max()
    )
    nothing = eigenpairs_of_rows(jnp.zeros((3, 8)), 3)
    assert all(not np.any(each) for each in nothing)


def test_vectors_in_float32_are_taken_apart_in_float64():
    """Where float64 is off elsewhere, and nothing warns."""
    rows = few(40, 4)
    with jax.enable_x64(False):
        values, vectors = jax.jit(eigenpairs_of_rows, static_argnums=1)(jnp.asarray(rows, jnp.float32), 5)
    assert values.dtype == vectors.dtype == jnp.float32
    matrix = rows.T @ rows
    np.testing.assert_allclose(
        (vectors * np.asarray(values)[None]) @ vectors.T, matrix, atol=2e-6 * np.abs(matrix).max()
    )


@pytest.mark.parametrize(
    ("loss", "curvature", "count"),
    [(CosineDistance(), "ggn", 16), (SimCLR(temperature=0.5), "fisher", 4), (BYOL(), "empirical_fisher", 8)],
)
def test_kept_samples_have_the_second_moment_that_is_summed(loss, curvature, count):
    """Two batches of four examples, two draws: for each example, for each batch of a coupled loss, and none."""
    asked = problem(loss, curvature, Linear())
    assert sample_count(asked, 2) == count

    def both(tree):
        rows = trees.ravel_batch(tree)
        return rows.T @ rows, rows

    moment, rows = jax.jit(lambda asked: sum_over_samples(asked, 2, lambda g: both(g.full()), both))(asked)
    assert rows.shape[0] == count
    np.testing.assert_allclose(rows.T @ rows, moment, rtol=1e-12, atol=1e-14 * np.abs(moment).max())


@pytest.mark.parametrize(
    "backend", [KFAC(), EKFAC(), Deflated(rank=2, block=2)], ids=lambda backend: type(backend).__name__
)
def test_vectors_of_more_entries_than_samples_are_inverted_as_by_their_whole_moment(backend, monkeypatch):
    """Two samples, and vectors of four and more entries beside the layers."""
    asked = problem(CosineDistance(), "ggn", Small(), num_batches=1, size=2)
    gradients = measure(asked.objective, asked.params, asked.frozen, first_batch(asked)).gradients
    vector = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), asked.params
    )

    def answers():
        state = jax.jit(lambda asked: backend.fit(asked, jax.random.key(0)))(asked)
        rotations = getattr(state, "rest", state).rotations.values()
        damping = backend.resolve(state, Damping(0.1))
        form = jax.jit(backend.bilinear_form)(state, gradients, gradients, damping)
        solved = jax.jit(backend.solve)(state, vector, damping)
        return min(each.shape[1] - each.shape[0] for each in rotations), form, trees.ravel(solved)

    missing, *few_samples = answers()
    monkeypatch.setattr(eigenbasis, "sample_count", lambda *_: 1_000_000)
    none, *whole = answers()
    assert missing < 0
    assert none == 0
    for got, want in zip(few_samples, whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("complement", ["drop", "keep"])
def test_logra_of_fewer_samples_than_features_is_its_dense_formula(complement):
    """Three images and 25 features: solve, bilinear forms and draw Grams, at λ far below and near the eigenvalues."""
    images, cotangents = RNG.normal(size=(3, 1, 1, 8)), RNG.normal(size=(3, 7))
    problem = given(images, cotangents, np.arange(3), Deep((7,), bias=False))
    backend = LoGra(rank=5, complement=complement)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    assert state.rotations["Dense_0"].shape == (25, 3)
    left, right = (np.asarray(side)[0] for side in state.bases["Dense_0"])
    basis = np.einsum("ik,ol->iokl", left, right).reshape(56, 25)
    rows = np.asarray(trees.ravel_batch(example_gradients(problem)))
    curvature = rows.T @ rows / 3
    inner = basis.T @ curvature @ basis
    gradients = measured_by(problem)
    gradient_rows = np.asarray(trees.ravel_batch(gradients.full()))
    vector = trees.unravel(problem.params, jnp.asarray(gradient_rows[0]))

    @jax.jit
    def ask(state, damping):
        values = backend.draw_gram(state, gradients, damping).values[:, 0, 0]
        return (
            backend.bilinear_form(state, gradients, gradients, damping),
            values,
            backend.solve(state, vector, damping),
        )

    spectrum = backend.spectrum(state)["Dense_0"]
    assert float(spectrum.counts.sum()) == (56 if complement == "keep" else 25)
    for relative in (1e-4, 1.0):
        damping = backend.resolve(state, Damping(relative))
        value = float(damping["Dense_0"])
        assert value == pytest.approx(relative * np.trace(curvature) / 56)
        inverse = basis @ np.linalg.inv(inner + value * np.eye(25)) @ basis.T
        if complement == "keep":
            level = (np.trace(curvature) - np.trace(inner)) / (56 - 25)
            inverse = inverse + (np.eye(56) - basis @ basis.T) / (level + value)
        want = gradient_rows @ inverse @ gradient_rows.T
        scale = 1e-9 * np.abs(want).max()
        between, values, solved = ask(state, damping)
        np.testing.assert_allclose(between, want, rtol=1e-8, atol=scale)
        np.testing.assert_allclose(values, np.diag(want), rtol=1e-8)
        solution = inverse @ gradient_rows[0]
        np.testing.assert_allclose(trees.ravel(solved), solution, rtol=1e-8, atol=1e-9 * np.abs(solution).max())
