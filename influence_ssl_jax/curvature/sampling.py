"""Draws from N(0, ∇²head): the randomness of the sampled Fisher, fixed by the keys inside a batch."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax import randomness
from influence_ssl_jax.losses.loss import Loss
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch


def output_samples(
    loss: Loss, outputs: Float[Array, "*outputs"], batch: Batch, samples: int | None
) -> Float[Array, "samples *outputs"]:
    """Draw w ~ N(0, ∇²head(outputs)), `samples` times, or take every column of its square root.

    With `samples=None` the rows are `S e_j`, `S Sᵀ = ∇²head`, e_j every coordinate of the outputs (of one example's, all
    examples at once, where the loss is separable): their outer products sum to ∇²head itself, without an average.

    For a separable loss an example's draws come from its own key, so they do not depend on the batch that it is in. For
    a batch-coupled loss they come from the first key of the batch.
    """
    if samples is None:
        shape = outputs.shape[1:] if loss.separable else outputs.shape
        units = jnp.eye(math.prod(shape), dtype=outputs.dtype).reshape(-1, *shape)
        noise = jnp.broadcast_to(units[:, None], (len(units), *outputs.shape)) if loss.separable else units
    elif loss.separable:
        keys = jax.vmap(lambda key: jax.random.split(randomness.branch(key, Stream.FISHER), samples), out_axes=1)(
            batch.key
        )
        noise = jax.vmap(jax.vmap(lambda key: randomness.normal(key, outputs.shape[1:], outputs.dtype)))(keys)
    else:
        key = randomness.branch(batch.key[0], Stream.FISHER)
        noise = randomness.normal(key, (samples, *outputs.shape), outputs.dtype)
    return jax.vmap(lambda draw: loss.head_square_root(outputs, draw))(noise)
