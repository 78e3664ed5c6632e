"""Random bases stand in positions of their own: both sides of a layer, and layers of the same size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.ihvp import LoGra
from influence_ssl_jax.linalg.lowrank import random_orthonormal
from tests.ihvp.grid import Deep, given


def test_no_two_sides_of_any_layers_have_one_basis():
    """Every side has five entries, so that a key used twice would give one basis twice."""
    rng = np.random.default_rng(0)
    problem = given(rng.normal(size=(4, 1, 1, 5)), rng.normal(size=(4, 5)), np.arange(4), Deep((5, 5), bias=False))
    bases = jax.jit(LoGra(rank=2).fit)(problem, jax.random.key(0)).bases
    sides = [np.asarray(side)[0] for pair in bases.values() for side in pair]
    assert len(sides) == 4
    for one, other in itertools.combinations(sides, 2):
        assert np.linalg.norm(one @ one.T - other @ other.T) > 0.1


def test_a_random_position_prefers_no_direction():
    """The mean of every entry is zero: a QR decomposition alone would give the first one the same sign each time."""
    keys = jax.random.split(jax.random.key(0), 2000)
    bases = np.asarray(jax.jit(jax.vmap(lambda key: random_orthonormal(key, 4, 2, jnp.float64)))(keys))
    assert (np.abs(bases.mean(axis=0)) <= 5 * bases.std(axis=0) / 2000**0.5).all()
