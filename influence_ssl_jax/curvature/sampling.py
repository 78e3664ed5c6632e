"""Draws from N(0, ∇²head): the randomness of the sampled Fisher, fixed by the keys inside a batch."""

import jax
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Loss
from influence_ssl_jax.types import Batch

_STREAM = 0x5F15  # any constant: keeps these draws apart from those of the views, which use the key itself


def output_samples(
    loss: Loss, outputs: Float[Array, "*outputs"], batch: Batch, samples: int
) -> Float[Array, "samples *outputs"]:
    """Draw w ~ N(0, ∇²head(outputs)), `samples` times.

    For a separable loss an example's draws come from its own key, so they do not depend on the batch that it is in. For
    a batch-coupled loss they come from the first key of the batch.
    """
    if loss.separable:
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, _STREAM), samples), out_axes=1)(batch.key)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, outputs.shape[1:], outputs.dtype)))(keys)
    else:
        key = jax.random.fold_in(batch.key[0], _STREAM)
        noise = jax.random.normal(key, (samples, *outputs.shape), outputs.dtype)
    return jax.vmap(lambda draw: loss.head_square_root(outputs, draw))(noise)
