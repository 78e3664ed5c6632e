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

from influence_ssl_jax.data.source import Example, OpenSource, UnreadableExample, content_digest, passing
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


class Encoded(OpenSource):
    """A source that gives the encoded bytes, the name and the class of an example: reading and digests follow."""

    @abc.abstractmethod
    def _stored(self, index: int) -> bytes:
        """Return the encoded image.

        Raises:
            UndecodableImage: There is none, or it cannot be used.
        """

    @abc.abstractmethod
    def _id(self, index: int) -> str:
        """Return the name of one example."""

    @abc.abstractmethod
    def _class(self, index: int) -> int:
        """Return the class of one example, −1 where it has none."""

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
        """The digest of the encoded bytes; nothing is decoded."""
        try:
            return content_digest(self._stored(index))
        except UndecodableImage as error:
            raise UnreadableExample(index, self._id(index), str(error)) from error
