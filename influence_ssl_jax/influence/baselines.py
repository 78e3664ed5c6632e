"""The trivial explanations that a score must beat, as far as a batch tells them: pixel variance."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def pixel_variance(images: Num[Array, "batch height width channels"]) -> Float[Array, " batch"]:
    """Variance over all pixels and channels, pixels in [0, 1]: zero for a uniform image."""
    pixels = images / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images
    return jnp.var(pixels, axis=(1, 2, 3))
