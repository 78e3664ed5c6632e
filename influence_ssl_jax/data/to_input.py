"""Transform the pixels of any image to the input of a network."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from influence_ssl_jax.data.examples import Example, OpenSource, read_all
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
"""Number of values that are converted at a time."""


class UnusableImage(ValueError):
    """The error that an array is not an image.

    The message is the reason.
    """


@dataclasses.dataclass(frozen=True)
class ToInput:
    """The transform of any image to uint8 [height, width, channels].

    An image that has this type and size already stays unchanged, bit for bit. The steps are

    1. to 8 bits: `round(255 x / (2^bits − 1))` for 16-bit types, `round(255 x)` for floating point, 0 and 255 for Booleans;
    2. alpha over the background;
    3. grey to colour by repetition, colour to grey by the luma of ITU-R 601, `0.299 R + 0.587 G + 0.114 B`;
    4. crop or pad;
    5. resampling by Pillow, which smooths if it shrinks.

    Attributes:
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        channels: 3 for colour, 1 for grey.
        resize: The resampling filter.
        crop: What to do if the proportions differ: keep the largest centred part (`center`), distort (`stretch`), or keep
            everything and fill the rest with the background (`pad`).
        background: Grey level 0…255 behind transparent pixels and in the padding.
        bits: The number of bits that values of a 16-bit type use: 12 for most medical and raw images, 8 for 8-bit values
            in a wider type.
        shorter: With `center`: first resize the shorter side to this number of pixels, then cut the input from the centre
            (256 before 224 for most networks of photographs). An image of the size of the input stays unchanged.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax import ToInput
        >>> ToInput(1, 2, 3)(np.asarray([[0.0, 1.0]])).tolist()  # floating-point grey becomes 8-bit colour
        [[[0, 0, 0], [255, 255, 255]]]
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
        """Refuse unknown choices, sizes without pixels, and grey levels outside 0…255."""
        for name, hint in get_type_hints(type(self)).items():
            known = get_args(hint) if get_origin(hint) is Literal else ()
            if known and getattr(self, name) not in known:
                raise DataError(f"{name} must be one of {', '.join(map(str, known))}; got {getattr(self, name)!r}.")
        for name in ("height", "width", "background", *(() if self.shorter is None else ("shorter",))):
            if not isinstance(getattr(self, name), int):
                raise DataError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        if self.height < 1 or self.width < 1:
            raise DataError(f"The input needs at least one pixel, got height={self.height}, width={self.width}.")
        if not 0 <= self.background <= 255:
            raise DataError(f"background is a grey level 0…255, got {self.background}.")
        if self.shorter is not None and (self.crop != "center" or self.shorter < max(self.height, self.width)):
            raise DataError(
                f"shorter needs crop='center' and at least the size of the input, got shorter={self.shorter}, "
                f"crop={self.crop!r} and an input of {self.height}×{self.width}."
            )

    def __call__(self, image: np.ndarray) -> UInt8[np.ndarray, "{self.height} {self.width} {self.channels}"]:
        """Return the image as the network reads it.

        Args:
            image: [height, width] or [height, width, 1…4] (grey, grey + alpha, colour, colour + alpha).

        Raises:
            UnusableImage: If its shape, type or values are not those of an image, or pixels are not finite.
        """
        pixels = _to_eight_bits(_with_channels(image), self.bits)
        pixels = _to_channels(_blend_alpha(pixels, self.background), self.channels)
        if pixels.shape[:2] == (self.height, self.width):
            return pixels
        return self._crop_and_resize(Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels))

    def _crop_and_resize(self, image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
        """Bring an image of any proportions and size to the input's."""
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
    """Return the image with an axis of channels."""
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise UnusableImage(f"an image is [height, width] or [height, width, 1…4], got shape {list(image.shape)}")
    return pixels


def _to_eight_bits(pixels: np.ndarray, bits: int) -> UInt8[np.ndarray, "height width channels"]:
    """Convert pixels of any type to 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        highest = 2**bits - 1
        if pixels.max() > highest:
            raise UnusableImage(f"values up to {pixels.max()}, which {bits} bits do not hold; set bits to more")
        return _map_rows(lambda rows: np.round(rows * (255 / highest)), pixels, pixels.shape[-1])
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
    if np.round(lowest * factor) < 0 or np.round(highest * factor) > 255:  # compared after rounding
        raise UnusableImage(f"{what} pixels must be in 0…{top}, got {lowest:.6g}…{highest:.6g}")
    return _map_rows(lambda rows: np.round(rows * factor), pixels, pixels.shape[-1])


def _blend_alpha(pixels: np.ndarray, background: int) -> UInt8[np.ndarray, "height width channels"]:
    """Blend transparent pixels with the background, and remove alpha."""
    if pixels.shape[-1] in (1, 3):
        return pixels

    def blend(rows: np.ndarray) -> np.ndarray:
        alpha = rows[..., -1:] / 255
        return np.round(rows[..., :-1] * alpha + background * (1 - alpha))

    return _map_rows(blend, pixels, pixels.shape[-1] - 1)


def _map_rows(
    change: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, channels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Apply `change` to some rows at a time.

    It needs eight times the memory of these rows.
    """
    changed = np.empty((*pixels.shape[:2], channels), np.uint8)
    step = max(1, _BLOCK // (pixels.shape[1] * pixels.shape[2]))
    for row in range(0, len(pixels), step):
        changed[row : row + step] = change(pixels[row : row + step])
    return changed


def _to_channels(pixels: np.ndarray, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Convert grey to colour or colour to grey."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


EXAMINED = 16
"""Number of images, from the first one on, that `depth_notes` reads."""


def depth_notes(source: OpenSource, transform: ToInput) -> tuple[str, ...]:
    """Return a note if 16-bit images use too few bits.

    The first 16-bit images then use fewer bits than `transform` expects. Such images would be nearly black.
    """
    read = read_all(source, range(min(EXAMINED, len(source))))
    deep = [each.image for each in read if isinstance(each, Example) and each.image.dtype == np.uint16]
    highest = max((int(image.max()) for image in deep), default=0)
    held = next((bits for bits in (8, 10, 12, 14) if highest < 2**bits), 16)
    if not deep or not highest or held >= transform.bits:
        return ()
    return (
        f"the first {len(deep)} images of 16 bits have no value above {highest}: as images of {transform.bits} bits they "
        f"are nearly black. If they are images of {held} bits, pretrain with --input.bits {held}",
    )
