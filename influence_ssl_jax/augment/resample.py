"""Antialiased resampling of a rectangle of an image, as PIL and torchvision define it."""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]


def resample(
    image: Float[Array, "height width channels"],
    top: Int[Array, ""],
    left: Int[Array, ""],
    crop_height: Int[Array, ""],
    crop_width: Int[Array, ""],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> Float[Array, "out_height out_width channels"]:
    """Cut a rectangle out and resize it: out = W_rows · image · W_columnsᵀ.

    `jax.image.scale_and_translate` would let pixels outside the rectangle bleed into its border; cutting first, as PIL
    and torchvision do, means that the weights of the pixels inside are normalised.

    Args:
        image: The whole image.
        top: First row of the rectangle.
        left: First column of the rectangle.
        crop_height: Rows of the rectangle.
        crop_width: Columns of the rectangle.
        size: Height and width of the result.
        interpolation: The filter; with antialiasing it widens where the image shrinks.
    """
    rows = _weights(image.shape[0], top, crop_height, size[0], interpolation, image.dtype)
    columns = _weights(image.shape[1], left, crop_width, size[1], interpolation, image.dtype)
    return jnp.einsum("oh,hwc,pw->opc", rows, image, columns)


def _weights(
    pixels: int, start: Array, extent: Array, out: int, interpolation: Interpolation, dtype: jnp.dtype
) -> Array:
    """Row o weighs pixel i by f((i + ½ − start − (o + ½)s) / max(s, 1)), s = extent / out, normalised inside."""
    scale = extent.astype(dtype) / out
    centres = (jnp.arange(out, dtype=dtype) + 0.5) * scale
    positions = jnp.arange(pixels, dtype=dtype) + 0.5 - start.astype(dtype)
    distances = jnp.abs(positions[None, :] - centres[:, None]) / jnp.maximum(scale, 1)
    inside = (positions > 0) & (positions < extent)
    weights = jnp.where(inside[None, :], _FILTERS[interpolation](distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: Array) -> Array:
    return jnp.maximum(1 - x, 0)


def _keys_cubic(x: Array) -> Array:
    """Keys' cubic convolution with a = −½, the parameter of PIL and of torch's antialiased resize."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _keys_cubic}
