"""What rounding does to gradients, against float64: bounded, and not by far too much, however near the views are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.augment import GaussianNoise
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp.rounding import gradient_lengths, product_doubt
from influence_ssl_jax.losses import CosineDistance, SimCLR
from tests import problems

UNIT = float(np.finfo(np.float32).eps)


def gradients(sigma, dtype):
    """Rows and lengths of eight examples' gradients at noise of one strength, the pixels of both types the same."""
    problem = problems.problem(CosineDistance(), module=problems.Small(), channels=3)
    objective = dataclasses.replace(problem.objective, views=GaussianNoise(sigma))
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problem.batches)
    batch = dataclasses.replace(batch, image=(255 * batch.image).astype(jnp.uint8))
    params, frozen = trees.astype((problem.params, problem.frozen), "float32")
    params, frozen = trees.astype((params, frozen), dtype)

    @jax.jit
    def run(params, frozen, batch):
        taken = measure(objective, params, frozen, batch, 2).gradients
        return trees.ravel_batch(taken.full()), gradient_lengths(objective, taken)

    return run(params, frozen, batch)


@pytest.mark.parametrize("sigma", [0.2, 0.02, 0.002])
def test_the_error_of_a_gradient_is_within_its_doubt(sigma):
    rows, lengths = gradients(sigma, "float32")
    exact, finer = gradients(sigma, "float64")
    error = np.linalg.norm(np.asarray(rows, float) - np.asarray(exact), axis=1)
    length, doubt = np.asarray(lengths.length, float), np.asarray(lengths.doubt, float)
    np.testing.assert_allclose(finer.length, np.linalg.norm(exact, axis=1), rtol=1e-9)
    assert (np.abs(length - np.asarray(finer.length)) <= doubt).all()
    assert (error <= doubt).all()
    assert np.median(doubt / error) < 500
    assert (doubt >= 32 * UNIT * length).all()
    if sigma == 0.002:  # unit roundoffs of ‖g‖ alone say too little where the views are near
        assert (error > 32 * UNIT * length).any()


def test_a_loss_without_a_gradient_for_each_example_is_refused():
    problem = problems.problem(CosineDistance(), module=problems.Linear(), image=3)
    batch = problems.first_batch(problem)
    taken = measure(problem.objective, problem.params, problem.frozen, batch).gradients
    with pytest.raises(TypeError, match="got SimCLR"):
        gradient_lengths(dataclasses.replace(problem.objective, loss=SimCLR()), taken)


def test_the_doubt_of_products_is_measured_if_they_lose_digits():
    matrix = jnp.diag(jnp.linspace(0.1, 1.0, 20))
    like, damping = matrix[0], jnp.asarray(0.1)

    def coarse(rows):
        return jnp.round(rows @ matrix, 3)  # as products of small differences lose digits

    exact, rounded = (float(product_doubt(products, like, damping)) for products in (lambda v: v @ matrix, coarse))
    assert exact < 1e-13
    rows = np.random.default_rng(0).normal(size=(50, 20))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    error = np.linalg.norm(np.asarray(coarse(rows)) - rows @ np.asarray(matrix), axis=1)
    assert error.max() < rounded < 100 * error.max()
