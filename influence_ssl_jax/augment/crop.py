"""Crop, shift and flip images at random, with antialiased resampling."""

import dataclasses
import math
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.transform import Transform

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
    """Cut a rectangle out of an image and resize it: `W_rows · image · W_columnsᵀ`.

    The rectangle is cut out first, as PIL and torchvision do, so the weights of the pixels inside it sum to 1.
    `jax.image.scale_and_translate` would mix pixels outside the rectangle into its border.

    Args:
        image: The whole image.
        top: First row of the rectangle.
        left: First column of the rectangle.
        crop_height: Number of rows of the rectangle.
        crop_width: Number of columns of the rectangle.
        size: Height and width of the result.
        interpolation: The filter; it widens if the image shrinks, which prevents aliasing.
    """
    rows = _weights(image.shape[0], top, crop_height, size[0], interpolation, image.dtype)
    columns = _weights(image.shape[1], left, crop_width, size[1], interpolation, image.dtype)
    return jnp.einsum("oh,hwc,pw->opc", rows, image, columns)


def _weights(
    pixels: int, start: Array, extent: Array, out: int, interpolation: Interpolation, dtype: jnp.dtype
) -> Array:
    """Return the matrix whose entry `(o, i)` weighs pixel `i` in output `o`.

    The weight is `f((i + ½ − start − (o + ½) s) / max(s, 1))` with `s = extent / out`, and 0 outside the rectangle;
    each row has sum 1.
    """
    scale = extent.astype(dtype) / out
    centres = (jnp.arange(out, dtype=dtype) + 0.5) * scale
    positions = jnp.arange(pixels, dtype=dtype) + 0.5 - start.astype(dtype)
    distances = jnp.abs(positions[None, :] - centres[:, None]) / jnp.maximum(scale, 1)
    inside = (positions > 0) & (positions < extent)
    weights = jnp.where(inside[None, :], _FILTERS[interpolation](distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x: Array) -> Array:
    """Return the kernel of bilinear interpolation."""
    return jnp.maximum(1 - x, 0)


def _keys_cubic(x: Array) -> Array:
    """Compute Keys' cubic convolution with a = −½.

    This is the parameter of PIL and of torch's antialiased resize.
    """
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _keys_cubic}


_ATTEMPTS = 10
"""Attempts at a rectangle that fits, as in torchvision."""


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """A random rectangle, resized with antialiasing as torchvision's `RandomResizedCrop`.

    The share of the area is drawn from U(scale), the log of the aspect ratio from U(log ratio), and the sides are
    rounded to pixels. Of ten draws the first that fits is taken, at a uniform position. If none fits, the result is the
    largest central rectangle with an allowed ratio.

    Attributes:
        scale: Range of the share of the image's area.
        ratio: Range of width / height.
        height: Height of the result in pixels; `None` keeps that of the image.
        width: Width of the result in pixels; `None` keeps that of the image.
        interpolation: The filter of the resize.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import RandomResizedCrop
        >>> crop = RandomResizedCrop(scale=(0.25, 0.5), height=2, width=3)
        >>> jax.eval_shape(crop, jax.random.key(0), jnp.ones((8, 8, 1))).shape
        (2, 3, 1)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    height: int | None = None
    width: int | None = None
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        """Refuse an empty range, and shares above 1."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is a range of shares with 0 < low ≤ high ≤ 1, got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is a range of width / height with 0 < low ≤ high, got {self.ratio}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "out_height out_width channels"]:
        """Draw a rectangle and resize it.

        The bicubic filter overshoots; the result is clipped to [0, 1].
        """
        size = self.height or image.shape[0], self.width or image.shape[1]
        rectangle = self.rectangle(key, image.shape[0], image.shape[1])
        return jnp.clip(resample(image, *rectangle, size, self.interpolation), 0, 1)

    def rectangle(
        self, key: Key[Array, ""], height: int, width: int
    ) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
        """Draw (top, left, height, width) of a rectangle in pixels."""
        # One flat draw, because XLA compiles a draw with two axes four times as long.
        draws = randomness.uniform(key, (4 * _ATTEMPTS,), jnp.float32).reshape(4, _ATTEMPTS)
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = jnp.exp(low + (high - low) * draws[1])
        widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = jnp.argmax(fits)
        central_height, central_width = self._central(height, width)
        crop_height = jnp.where(fits[first], heights[first], central_height)
        crop_width = jnp.where(fits[first], widths[first], central_width)
        # floor(u·(n + 1)) for u in (0, 1) is uniform on 0 … n; the minimum guards against rounding up to n + 1.
        room_height, room_width = height - crop_height, width - crop_width
        top = jnp.minimum((draws[2, 0] * (room_height + 1)).astype(jnp.int32), room_height)
        left = jnp.minimum((draws[3, 0] * (room_width + 1)).astype(jnp.int32), room_width)
        return (
            jnp.where(fits[first], top, room_height // 2),
            jnp.where(fits[first], left, room_width // 2),
            crop_height,
            crop_width,
        )

    def _central(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the largest central rectangle of allowed ratio."""
        if width / height < self.ratio[0]:
            return min(height, round(width / self.ratio[0])), width
        if width / height > self.ratio[1]:
            return height, min(width, round(height * self.ratio[1]))
        return height, width


@dataclasses.dataclass(frozen=True)
class RandomShift(Transform):
    """A random crop of the image's own size, after black padding.

    It is the usual augmentation of supervised training on CIFAR.

    Attributes:
        padding: Width of the frame in pixels.

    Examples:
        Without a frame there is one crop: the image.

        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import RandomShift
        >>> image = jnp.asarray([[[0.25], [0.75]]])
        >>> RandomShift(padding=0)(jax.random.key(0), image).ravel().tolist()
        [0.25, 0.75]
    """

    padding: int = 4

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Shift the image by at most `padding` pixels along each axis."""
        frame = (self.padding, self.padding)
        padded = jnp.pad(image, (frame, frame, (0, 0)))
        top, left = randomness.integers(key, (2,), 0, 2 * self.padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


@dataclasses.dataclass(frozen=True)
class HorizontalFlip(Transform):
    """A transform that mirrors an image, left for right.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> HorizontalFlip()(jax.random.key(0), jnp.asarray([[[0.25], [0.75]]])).ravel().tolist()
        [0.75, 0.25]
    """

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Flip the image."""
        del key
        return image[:, ::-1, :]
