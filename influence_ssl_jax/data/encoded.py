"""Read and decode images that are stored encoded."""

import abc
import contextlib
import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from influence_ssl_jax.data.examples import Example, OpenSource, UnreadableExample, content_digest, is_temporary
from influence_ssl_jax.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes of image files, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may decode. Some of its other formats start a program (EPS: Ghostscript), whatever the file's name."""

MAX_BYTES = 2**30
"""Limit of the memory that all threads together use to decode, and of the size of an encoded image, in bytes."""

_AS_STORED = frozenset({"L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "F"})
_GONE = (errno.ENOENT, errno.ENOTDIR)


class UndecodableImage(ValueError):
    """The error that bytes are not a complete image.

    The message is the reason.
    """


class _Memory:
    """The memory that threads share.

    A thread that would exceed it waits for the others.
    """

    def __init__(self) -> None:
        self._held, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes during the block, once `MAX_BYTES` allows them."""
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


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file, never of pipes or devices.

    Raises:
        UndecodableImage: If the file is gone, is a link to nothing, is not a regular file, or is too large.
        OSError: If it cannot be read at present (permission, a network disk that does not answer, too many open files).
            The image itself may be intact: `data.examples.retry` reads again, and then stops the run.
    """
    try:
        return _read_regular(path)
    except OSError as error:
        if error.errno in _GONE:
            reason = "a link to nothing" if path.is_symlink() else "the file is gone"
            raise UndecodableImage(reason) from None
        if error.errno == errno.ELOOP:
            raise UndecodableImage("a link to itself") from None
        if not is_temporary(error):
            raise UndecodableImage(f"not a regular file ({error.strerror or error})") from None
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def unreachable_error(what: str, error: BaseException) -> DataError:
    """Return the error that data cannot be read at present.

    No damage is known.
    """
    return DataError(
        f"{what} cannot be read: {error}. The image may be intact, so it is not skipped. Repair the cause (or "
        "leave the image out with --source.only) and repeat the command; finished work is kept."
    )


def _read_regular(path: Path) -> bytes:
    """Return a file's bytes after checks of its kind and size."""
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableImage("not a regular file")
        if status.st_size > MAX_BYTES:
            raise UndecodableImage(f"a file of {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,}")
        return file.read(status.st_size + 1)


def decode(stored: Path | bytes) -> np.ndarray:
    """Decode an image; keep grey, colour, alpha and 16 bits.

    Palettes, bitmaps, CMYK and other colour spaces become RGB (RGBA if they have transparency). The EXIF orientation is
    applied. The first frame of an animation is read. Only `FORMATS` are decoded.

    Args:
        stored: The file, or its bytes.

    Returns:
        Pixels [height, width] or [height, width, channels]: uint8, uint16 or float32.

    Raises:
        UndecodableImage: If the file is missing, truncated, too large or not an image.
        MemoryError, OSError: If there is no memory or no access at present; the image may be intact.

    Examples:
        A file of the format PGM: its size, the largest grey level, and two pixels.

        >>> from influence_ssl_jax.data.encoded import decode
        >>> decode(b"P5 2 1 255 " + bytes([0, 200])).tolist()
        [[0, 200]]
    """
    content = stored if isinstance(stored, bytes) else read_file(stored)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = _decoding_bytes(image)
            if size > MAX_BYTES:
                raise UndecodableImage(
                    f"{image.width}×{image.height} pixels need {size:,} bytes to decode, more than the limit {MAX_BYTES:,}"
                )
            with _memory.hold(size):
                ImageOps.exif_transpose(image, in_place=True)
                return _to_array(image)
    except UndecodableImage:
        raise
    except MemoryError as error:
        raise MemoryError("there is no memory to decode an image") from error
    except Exception as error:  # damaged files make the decoders of Pillow raise errors of any type
        if is_temporary(error):
            raise
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"not an image in one of the formats {', '.join(FORMATS)}" if unknown else str(error)
        raise UndecodableImage(reason or type(error).__name__) from error


def _decoding_bytes(image: Image.Image) -> int:
    """Return a bound of the bytes that decoding needs.

    It counts the pixels of Pillow, their upright or converted copy, and the array with its pieces.
    """
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    transformed = 0 if image.mode in _AS_STORED and image.getexif().get(0x0112, 1) == 1 else 4
    return image.width * image.height * (stored + transformed + 2 * (4 if transformed else stored))


def _to_array(image: Image.Image) -> np.ndarray:
    """Convert an image of Pillow to an array.

    Unusual colours become grey, RGB or RGBA.
    """
    if image.mode in _AS_STORED:
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "I":  # some decoders open 16-bit grey as 32-bit
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UndecodableImage(f"grey levels {levels.min()}…{levels.max()}, outside the 0…65535 of 16 bits")
        return levels.astype(np.uint16)
    transparent = image.has_transparency_data
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


class Encoded(OpenSource):
    """A source of images that are stored encoded, one by one.

    A subclass returns the encoded bytes, the name and the class of an example; `read` and `content` use these.
    """

    @abc.abstractmethod
    def _stored(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            UndecodableImage: If there is none, or it cannot be used.
        """

    @abc.abstractmethod
    def _id(self, index: int) -> str:
        """Return the name of an example."""

    @abc.abstractmethod
    def _class(self, index: int) -> int:
        """Return the class of an example, −1 if it has none."""

    def read(self, index: int) -> Example:
        """Decode one image."""
        try:
            stored = self._stored(index)
            image = decode(stored)
        except UndecodableImage as error:
            raise UnreadableExample(index, self._id(index), str(error)) from error
        label = self._class(index)
        return Example(index, self._id(index), image, label if label >= 0 else None, content_digest(stored))

    def content(self, index: int) -> bytes:
        """Return the digest of the encoded bytes, without decoding."""
        try:
            return content_digest(self._stored(index))
        except UndecodableImage as error:
            raise UnreadableExample(index, self._id(index), str(error)) from error
