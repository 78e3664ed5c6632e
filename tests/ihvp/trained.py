"""A small encoder trained by SimCLR on the bundled digits, and its measurement's curvature."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch
from tests import problems


class Encoder(nn.Module):
    """Two linear layers."""

    width: int = 8
    outputs: int = 6

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = nn.relu(nn.Dense(self.width, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs, name="head")(x)


def digits(count: int, num_batches: int, seed: int) -> Batch:
    order = np.random.default_rng(seed).permutation(1797)[:count]
    images = load_digits().images[order, :, :, None] / 16
    shape = (num_batches, count // num_batches)
    keys = jax.random.split(jax.random.key(seed), shape)
    return Batch(jnp.asarray(images.reshape(*shape, 8, 8, 1)), keys, jnp.asarray(order.reshape(shape)))


@functools.cache
def trained(count: int = 64) -> Problem:
    """The GGN of the cosine distance over digits, at parameters after 150 steps of SimCLR on twice as many others."""
    encoder = Encoder()
    params, frozen = problems.variables(encoder, size=8, channels=1)
    objective, optimiser = problems.objective(SimCLR(0.5), encoder), optax.adam(3e-3)
    batches = digits(2 * count, 4, 0)

    def step(carry, i):
        params, state = carry
        batch = jax.tree.map(lambda leaf: leaf[i % 4], batches)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(batch.key)
        fresh = Batch(batch.image, keys, batch.index)
        updates, state = optimiser.update(jax.grad(objective)(params, frozen, fresh), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(150))[0][0])
    return Problem(run(params), frozen, digits(count, 2, 1), problems.objective(CosineDistance(), encoder))


def scored(problem: Problem, count: int = 100):
    """Measured gradients of other digits."""
    batch = jax.tree.map(lambda leaf: leaf[0], digits(count, 1, 2))
    measured = jax.jit(measure, static_argnums=(0, 4))(problem.objective, problem.params, problem.frozen, batch, 1)
    return measured.gradients
