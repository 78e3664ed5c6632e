"""Norms of gradients by inner products of rows keep their digits where the views are nearly equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.augment import GaussianNoise
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.losses import CosineDistance
from tests import problems


@pytest.mark.parametrize("sigma", [1e-3, 3e-4])
def test_norms_of_nearly_equal_views_are_those_of_float64(sigma):
    """A layer of 18 inputs and 3 outputs, for which inner products of rows are less work than the gradient."""
    problem = problems.problem(CosineDistance(), module=problems.Linear(), image=3)
    objective = dataclasses.replace(problem.objective, views=GaussianNoise(sigma))
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problem.batches)
    batch = dataclasses.replace(batch, image=(255 * batch.image).astype(jnp.uint8))
    rounded = trees.astype(problem.params, "float32")

    @jax.jit
    def norms(params):
        blocks = cut.discover(objective.network, params, {}, (3, 3, 2), "materialise")
        gradients = measure(objective, params, {}, batch, 2).gradients
        return gradients.squared_norms(blocks), jnp.sum(trees.ravel_batch(gradients.full()) ** 2, axis=1)

    want, formed = (np.asarray(side) for side in norms(trees.astype(rounded, "float64")))
    np.testing.assert_allclose(want, formed, rtol=1e-9)
    np.testing.assert_allclose(norms(rounded)[0], want, rtol=5e-3)


@pytest.mark.parametrize(
    ("batch", "entries", "want"), [(64, 2**20, 16), (250, 2**24 // 7, 5), (8, 2**30, 1), (7, 2**24 // 5, 5), (3, 1, 3)]
)
def test_as_many_examples_are_in_memory_as_have_room_and_divide_the_batch_where_that_halves_them_at_most(
    batch, entries, want
):
    assert cut.examples_at_once(batch, entries) == want
