"""Random resized crops, shifts and flips, with antialiased resampling."""

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


_ATTEMPTS = 10  # torchvision's


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """A rectangle of random area and aspect ratio, resized with antialiasing (torchvision's `RandomResizedCrop`).

    Area share ~ U(scale), log aspect ratio ~ U(log ratio), rounded to pixels; of ten such draws the first that fits is
    taken, at a uniform place; where none fits, the largest central rectangle with an admissible ratio.

    Attributes:
        scale: Range of the share of the image's area.
        ratio: Range of width / height.
        height: Height of the result in pixels; `None` keeps the image's.
        width: Width of the result in pixels; `None` keeps the image's.
        interpolation: The filter of the resize.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    height: int | None = None
    width: int | None = None
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is a range of shares with 0 < low ≤ high ≤ 1, got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is a range of width / height with 0 < low ≤ high, got {self.ratio}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "out_height out_width channels"]:
        """Draw a rectangle and resize it; bicubic overshoot is clipped to [0, 1], as 8-bit pixels do."""
        size = self.height or image.shape[0], self.width or image.shape[1]
        rectangle = self.rectangle(key, image.shape[0], image.shape[1])
        return jnp.clip(resample(image, *rectangle, size, self.interpolation), 0, 1)

    def rectangle(
        self, key: Key[Array, ""], height: int, width: int
    ) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
        """Draw (top, left, height, width) in pixels."""
        # One flat draw: with two axes XLA compiles four times as long.
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
        # floor(u·(n + 1)) for u in [0, 1) is uniform on 0 … n; the minimum guards against rounding up to n + 1.
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
        if width / height < self.ratio[0]:
            return min(height, round(width / self.ratio[0])), width
        if width / height > self.ratio[1]:
            return height, min(width, round(height * self.ratio[1]))
        return height, width


@dataclasses.dataclass(frozen=True)
class RandomShift(Transform):
    """A crop of the image's own size out of the image framed in black: the usual supervised augmentation.

    Attributes:
        padding: Width of the frame in pixels.
    """

    padding: int = 4

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Draw a shift of at most `padding` pixels either way."""
        frame = (self.padding, self.padding)
        padded = jnp.pad(image, (frame, frame, (0, 0)))
        top, left = randomness.integers(key, (2,), 0, 2 * self.padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


@dataclasses.dataclass(frozen=True)
class HorizontalFlip(Transform):
    """The mirror image, left for right."""

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Flip the image."""
        del key
        return image[:, ::-1, :]
