"""From encoded bytes to pixels, and from pixels to a network's input."""

import contextlib
import dataclasses
import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from influence_ssl_jax.data.source import passing
from influence_ssl_jax.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image file, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may decode. Of its other formats some start a program, as Ghostscript for EPS, whatever the file's name."""

MAX_BYTES = 2**30
"""Memory that decoding takes at most, by all threads together; also the most bytes of an encoded image."""

_AS_STORED = frozenset({"L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "F"})
_GONE = (errno.ENOENT, errno.ENOTDIR)


class UndecodableImage(ValueError):
    """Bytes that are not a whole image; the message is the reason."""


class _Memory:
    """Bytes that threads hold together; who would exceed them waits for the others."""

    def __init__(self) -> None:
        self._held, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Wait until `size` more bytes are within MAX_BYTES, and hold them while the block works."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= MAX_BYTES)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


_memory = _Memory()


def contents(path: Path) -> bytes:
    """Return the bytes of a regular file; pipes and devices are never opened for reading.

    Raises:
        UndecodableImage: The file is gone, is a link that leads nowhere, is no regular file, or is too large.
        OSError: It cannot be read for now (permission, a network disk that does not answer, too many open files), which
            says nothing of the image: `persistently` tries again and then stops the run.
    """
    try:
        return _contents(path)
    except OSError as error:
        if error.errno in _GONE:
            reason = "a link that leads nowhere" if path.is_symlink() else "the file is gone"
            raise UndecodableImage(reason) from None
        if error.errno == errno.ELOOP:
            raise UndecodableImage("a link that leads to itself") from None
        if not passing(error):
            raise UndecodableImage(f"not a regular file ({error.strerror or error})") from None
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def unreachable(what: str, error: BaseException) -> DataError:
    """Return the error of data that cannot be read at present, though nothing says that they are damaged."""
    return DataError(
        f"{what} cannot be read: {error}. That is no damage of an image, so nothing is skipped for it. Mend the cause (or "
        "leave the image out with --source.only), then give the same command again: what was finished is kept."
    )


def _contents(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its writer
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UndecodableImage("not a regular file")
        if found.st_size > MAX_BYTES:
            raise UndecodableImage(f"a file of {found.st_size:,} bytes, more than the {MAX_BYTES:,} that are read")
        return file.read(found.st_size + 1)


def decode(stored: Path | bytes) -> np.ndarray:
    """Return the pixels of an encoded image, upright, with grey, colour, alpha and 16 bits kept as they are.

    Palettes, bitmaps, CMYK and other colour spaces become RGB (RGBA where they have transparency); the EXIF orientation
    is applied; of an animation the first frame is read. Only the formats of FORMATS are tried.

    Returns:
        [height, width] or [height, width, channels] of uint8, uint16 or float32.

    Raises:
        UndecodableImage: The file is missing, truncated, too large or no image.
        MemoryError, OSError: There is no memory, or no access, for now: no damage of the image.
    """
    content = stored if isinstance(stored, bytes) else contents(stored)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = _decoding_bytes(image)
            if size > MAX_BYTES:
                raise UndecodableImage(
                    f"{image.width}×{image.height} pixels take {size:,} bytes to decode, more than the {MAX_BYTES:,} allowed"
                )
            with _memory.holding(size):
                ImageOps.exif_transpose(image, in_place=True)
                return _plain(image)
    except UndecodableImage:
        raise
    except MemoryError as error:
        raise MemoryError("there is no memory left to decode an image") from error
    except Exception as error:  # Pillow's decoders raise whatever the damage makes them raise
        if passing(error):
            raise
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"not an image of a format that is read ({', '.join(FORMATS)})" if unknown else str(error)
        raise UndecodableImage(reason or type(error).__name__) from error


def _decoding_bytes(image: Image.Image) -> int:
    """Bound the memory of decoding: Pillow's pixels, upright or converted ones, and the array with its pieces."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    transformed = 0 if image.mode in _AS_STORED and image.getexif().get(0x0112, 1) == 1 else 4
    return image.width * image.height * (stored + transformed + 2 * (4 if transformed else stored))


def _plain(image: Image.Image) -> np.ndarray:
    if image.mode in _AS_STORED:
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "I":  # 16-bit grey is opened as 32-bit by some decoders
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UndecodableImage(f"grey levels {levels.min()}…{levels.max()}, more than 16 bits hold")
        return levels.astype(np.uint16)
    transparent = image.has_transparency_data
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


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
