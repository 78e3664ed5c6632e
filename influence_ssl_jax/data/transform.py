"""From the pixels of an image to a network's input."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from influence_ssl_jax.data.source import Example, OpenSource, read_all
from influence_ssl_jax.errors import DataError

Resize: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit: TypeAlias = Literal["center", "stretch", "pad"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_BLOCK = 2**20
"""Values that are converted together."""


class UnusableImage(ValueError):
    """An array that is no image; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class ToInput:
    """Any image as uint8 [height, width, channels]; an image that already is one passes unchanged, bit for bit.

    First 8 bits (16-bit `round(255 x / (2^bits − 1))`, floating `round(255 x)`, Booleans 0 and 255), then alpha over the
    background, then grey ↔ colour (repeated; ITU-R 601 luma `0.299 R + 0.587 G + 0.114 B`), then crop or pad, then
    resampling by Pillow, which smooths where it shrinks.

    Attributes:
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        channels: 3 for colour, 1 for grey.
        resize: The resampling filter.
        crop: What is done where the proportions differ: keep the largest centred part (`center`), distort (`stretch`),
            or keep everything between bars of the background (`pad`).
        background: Grey level 0…255 behind transparent pixels and beside padded ones.
        bits: Bits that the values of images with a 16-bit type really have: 12 for most medical and raw ones, 8 for 8-bit
            values in a wider type.
        shorter: With `center`: the shorter side is first resized to so many pixels, and the input is cut from the centre
            (256 before 224 for most networks of photographs). An image of the input's own size passes unchanged still.
    """

    height: int = 32
    width: int = 32
    channels: Literal[1, 3] = 3
    resize: Resize = "bilinear"
    crop: Fit = "center"
    background: int = 0
    bits: Literal[8, 10, 12, 14, 16] = 16
    shorter: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes without pixels and grey levels that do not exist."""
        if self.height < 1 or self.width < 1:
            raise DataError(f"The input needs at least one pixel, got height={self.height}, width={self.width}.")
        if not 0 <= self.background <= 255:
            raise DataError(f"background is a grey level 0…255, got {self.background}.")
        if self.shorter is not None and (self.crop != "center" or self.shorter < max(self.height, self.width)):
            raise DataError(
                f"shorter={self.shorter} belongs to crop='center' and is no smaller than the input, got crop={self.crop!r} "
                f"and {self.height}×{self.width}."
            )

    def __call__(self, image: np.ndarray) -> UInt8[np.ndarray, "{self.height} {self.width} {self.channels}"]:
        """The image as the model reads it.

        Args:
            image: [height, width] or [height, width, 1…4] (grey, grey + alpha, colour, colour + alpha).

        Raises:
            UnusableImage: Its shape, its type or its values are not those of an image; non-finite pixels among them.
        """
        pixels = _eight_bits(_with_channels(image), self.bits)
        pixels = _recoloured(_opaque(pixels, self.background), self.channels)
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        return self._resized(Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels))

    def _resized(self, image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
        scales = (self.width / image.width, self.height / image.height)
        size = (self.width, self.height)
        if self.shorter is not None:
            smallest = min(image.width, image.height)
            whole = (int(self.shorter * image.width / smallest), int(self.shorter * image.height / smallest))
            left, top = (round((length - cut) / 2) for length, cut in zip(whole, size, strict=True))
            image = image.resize(whole, _FILTERS[self.resize]).crop((left, top, left + size[0], top + size[1]))
        elif self.crop == "center":
            kept = [max(1, round(length / max(scales))) for length in size]
            left, top = (image.width - kept[0]) // 2, (image.height - kept[1]) // 2
            image = image.crop((left, top, left + kept[0], top + kept[1]))
        elif self.crop == "pad":
            size = (max(1, round(image.width * min(scales))), max(1, round(image.height * min(scales))))
        resized = np.asarray(image.resize(size, _FILTERS[self.resize]))
        pixels = np.full((self.height, self.width, self.channels), self.background, np.uint8)
        top, left = (self.height - size[1]) // 2, (self.width - size[0]) // 2
        pixels[top : top + size[1], left : left + size[0]] = resized.reshape(size[1], size[0], self.channels)
        return pixels


def _with_channels(image: np.ndarray) -> np.ndarray:
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise UnusableImage(f"an image is [height, width] or [height, width, 1…4], got shape {list(image.shape)}")
    return pixels


def _eight_bits(pixels: np.ndarray, bits: int) -> UInt8[np.ndarray, "height width channels"]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        highest = 2**bits - 1
        if pixels.max() > highest:
            raise UnusableImage(f"values up to {pixels.max()}, more than {bits} bits hold; raise bits")
        return _by_rows(lambda rows: np.round(rows * (255 / highest)), pixels, pixels.shape[-1])
    if np.issubdtype(pixels.dtype, np.floating):
        broken = int((~np.isfinite(pixels)).sum())
        if broken:
            raise UnusableImage(f"non-finite pixels: {broken} of {pixels.size} are NaN or infinite")
        top, what, factor = 1, "floating-point", 255
    elif np.issubdtype(pixels.dtype, np.integer):
        top, what, factor = 255, "integer", 1
    else:
        raise UnusableImage(f"pixels are numbers, got dtype {pixels.dtype}")
    lowest, highest = (float(value) for value in (pixels.min(), pixels.max()))
    if np.round(lowest * factor) < 0 or np.round(highest * factor) > 255:  # what rounds into the range is in it
        raise UnusableImage(f"{what} pixels lie in 0…{top}, got {lowest:.6g}…{highest:.6g}")
    return _by_rows(lambda rows: np.round(rows * factor), pixels, pixels.shape[-1])


def _opaque(pixels: np.ndarray, background: int) -> UInt8[np.ndarray, "height width channels"]:
    if pixels.shape[-1] in (1, 3):
        return pixels

    def laid(rows: np.ndarray) -> np.ndarray:
        alpha = rows[..., -1:] / 255
        return np.round(rows[..., :-1] * alpha + background * (1 - alpha))

    return _by_rows(laid, pixels, pixels.shape[-1] - 1)


def _by_rows(
    change: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, channels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Apply `change` to some rows at a time: what it makes on the way is eight times as large as the image."""
    changed = np.empty((*pixels.shape[:2], channels), np.uint8)
    step = max(1, _BLOCK // (pixels.shape[1] * pixels.shape[2]))
    for row in range(0, len(pixels), step):
        changed[row : row + step] = change(pixels[row : row + step])
    return changed


def _recoloured(pixels: np.ndarray, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


LOOKED_AT = 16
"""Images, from the first on, that are looked at."""


def depth_notes(source: OpenSource, transform: ToInput) -> tuple[str, ...]:
    """Say if the first images have a 16-bit type and hold values of fewer bits, which would be read as nearly black."""
    read = read_all(source, range(min(LOOKED_AT, len(source))))
    deep = [each.image for each in read if isinstance(each, Example) and each.image.dtype == np.uint16]
    highest = max((int(image.max()) for image in deep), default=0)
    held = next((bits for bits in (8, 10, 12, 14) if highest < 2**bits), 16)
    if not deep or not highest or held >= transform.bits:
        return ()
    return (
        f"the first {len(deep)} images of 16 bits hold no value above {highest}: read as {transform.bits} bits they "
        f"are nearly black. If they are images of {held} bits, pretrain with --input.bits {held}",
    )
