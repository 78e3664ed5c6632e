"""Read the numbered examples of an open data set."""

import abc
import collections
import dataclasses
import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.errors import DataError, printable

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

WAITS = (0.1, 1.0, 5.0)
"""Seconds to wait before each further attempt, if a read failed for a reason outside the image."""
DAMAGE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
)
"""Errors of the operating system about one entry of a folder; reading again does not help, and other entries are intact."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An example as it is stored.

    Attributes:
        index: Its number in the source.
        id: Its name: a file, a key of the data set, or its number as text.
        image: Pixels [height, width] or [height, width, channels], integer or floating, before any transform.
        label: Its class; None if it is unknown.
        content: `content_digest` of the bytes that were read, before any transform. If a source leaves it empty, the
            loader computes it from `image`.
    """

    index: int
    id: str
    image: np.ndarray
    label: int | None = None
    content: bytes = b""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An example that cannot be used.

    Attributes:
        index: Its number in the source.
        id: Its name.
        reason: Why it cannot be used.
    """

    index: int
    id: str
    reason: str


class UnreadableExample(Exception):
    """The error that one example cannot be used; the other examples can.

    Attributes:
        skipped: The example and the reason.
    """

    def __init__(self, index: int, id: str, reason: str) -> None:
        self.skipped = Skipped(index, printable(id), printable(reason))
        super().__init__(f"example {index} ({self.skipped.id}): {self.skipped.reason}")


def read_or_skip(read: Callable[..., Example], *arguments: Any) -> Example | Skipped:
    """Return `read(*arguments)`, or the skipped example if it is unreadable."""
    try:
        return read(*arguments)
    except UnreadableExample as error:
        return error.skipped


class UnreachableError(OSError):
    """The error that images cannot be read at present; none is damaged."""


def is_temporary(error: BaseException) -> bool:
    """Test whether an error has a cause outside the image.

    Such causes are a lost connection, too many open files, no memory, or no permission.

    Examples:
        >>> from influence_ssl_jax.data.examples import is_temporary
        >>> is_temporary(ConnectionResetError()), is_temporary(ValueError("bad header"))
        (True, False)
    """
    if isinstance(error, MemoryError | UnreachableError | TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in DAMAGE


def retry(read: Callable[..., Result], *arguments: Any) -> Result:
    """Return `read(*arguments)`; after a temporary error, read again.

    The waits between the attempts are `WAITS`. Other errors are raised at once; `is_temporary` tells them apart.

    Raises:
        DataError: If every attempt failed with a temporary error; the message names it.
    """
    for wait in (*WAITS, None):
        try:
            return read(*arguments)
        except (OSError, MemoryError) as error:
            if not is_temporary(error):
                raise
            said = str(error) or type(error).__name__
            if wait is None:
                raise DataError(
                    f"Images cannot be read: {said}, {len(WAITS) + 1} times in a row. The images may be intact, so none is "
                    "skipped for it. Repair the cause and repeat the command; finished work is kept."
                ) from error
            _log.warning("images cannot be read (%s); the next attempt is in %s s", said, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def read_all(source: "OpenSource", indices: Sequence[int]) -> Iterator[Example | Skipped]:
    """Yield `source.read_many(indices)`; after a temporary error, continue where it stopped.

    Raises:
        DataError: As `retry`.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax import Arrays
        >>> from influence_ssl_jax.data.examples import read_all
        >>> [each.id for each in read_all(Arrays(np.zeros((3, 2, 2))).open(), [2, 0])]
        ['2', '0']
    """
    reads: Iterator[Example | Skipped] | None = None

    def following(done: int) -> Example | Skipped:
        nonlocal reads
        try:
            reads = iter(source.read_many(indices[done:])) if reads is None else reads
            return next(reads)
        except (OSError, MemoryError):
            reads = None
            raise

    for done in range(len(indices)):
        yield retry(following, done)


class OpenSource(abc.ABC):
    """An opened data set of numbered examples.

    They are read in any order, and by several threads at once.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of examples, readable or not."""

    @abc.abstractmethod
    def read(self, index: int) -> Example:
        """Read example `index` of `range(len(self))`.

        Raises:
            UnreadableExample: If its image is missing, truncated or not an image.
        """

    def read_many(self, indices: Sequence[int]) -> Iterator[Example | Skipped]:
        """Read several examples one after the other.

        One decoded image is in memory at a time. An example that cannot be used is yielded as `Skipped`. A source
        overrides this if reading together is faster.
        """
        return (read_or_skip(self.read, index) for index in indices)

    def ids(self) -> Sequence[str]:
        """Return the id of every example, in order.

        A source overrides this if it knows the ids without decoding.
        """
        return [each.id for each in read_all(self, range(len(self)))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every example, −1 if it has none.

        A source overrides this if it knows the classes without decoding.
        """
        read = read_all(self, range(len(self)))
        known = [each.label if isinstance(each, Example) else None for each in read]
        return np.array([-1 if label is None else label for label in known], np.int32)

    def truth(self) -> tuple[str, ...]:
        """Return the names of the attributes that say what the source planted.

        No other attribute is read as truth.
        """
        return ()

    @abc.abstractmethod
    def attributes(self) -> pa.Table | None:
        """Return the attributes, one row per example in order, or None."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the examples.

        It changes if examples are added, removed, renamed, resized or reordered. Classes and attributes are part of it.
        Of images on disk, the sizes are part of it and the content is not: an image that is replaced by another one of
        the same name and number of bytes leaves the hash unchanged.
        """

    def members(self) -> str:
        """Return a hash of which examples there are.

        It covers names, order, classes and attributes.

        A run that keeps the `content` of every image that it has read is known by this hash, because it compares the
        contents one by one and names the images that have changed. A source overrides this if `fingerprint` depends on
        the size or the pixels of an image.
        """
        return self.fingerprint()

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the classes 0, 1, …, or None.

        It is None if the source itself has numbers.
        """
        return None

    def content(self, index: int) -> bytes:
        """Return the `content_digest` of example `index`.

        A source overrides this if it needs no decoding.

        Raises:
            UnreadableExample: As `read`.
        """
        return content_of(self.read(index))

    def notes(self) -> tuple[str, ...]:
        """Return what was noticed on opening, one line each.

        Lines give counts; nothing in them prevents use.
        """
        return ()


def digest(*parts: str | bytes) -> str:
    """Return a stable hash of a sequence of texts.

    It is BLAKE2b, 32 hexadecimal digits; boundaries of texts are included.

    Examples:
        >>> from influence_ssl_jax.data.examples import digest
        >>> len(digest("ab", "c")), digest("ab", "c") == digest("a", "bc")
        (32, False)
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


def content_digest(stored: bytes | np.ndarray) -> bytes:
    """Return 16 bytes of BLAKE2b over encoded bytes or an array.

    Of an array, type, shape and bytes count.

    Examples:
        >>> from influence_ssl_jax.data.examples import content_digest
        >>> len(content_digest(b"an encoded image"))
        16
    """
    total = hashlib.blake2b(digest_size=16)
    if isinstance(stored, bytes):
        total.update(stored)
    else:
        total.update(f"{stored.dtype} {stored.shape}\n".encode())
        total.update(np.ascontiguousarray(stored).data)
    return total.digest()


def content_of(example: Example) -> bytes:
    """Return an example's digest; of its pixels if its source gives none."""
    return example.content or content_digest(example.image)


def note_names(what: str, names: Sequence[str], shown: int = 3) -> tuple[str, ...]:
    """Return one line with a count and the first names.

    There is no line if there are no names.

    Examples:
        >>> from influence_ssl_jax.data.examples import note_names
        >>> note_names("files without a class", ["a.png", "b.png", "c.png", "d.png"])
        ('files without a class: 4 (a.png, b.png, c.png, …)',)
    """
    if not names:
        return ()
    more = ", …" if len(names) > shown else ""
    return (f"{what}: {len(names)} ({', '.join(map(printable, names[:shown]))}{more})",)


def require_classes(source: OpenSource, classes: int) -> None:
    """Refuse a source with classes unknown or beyond the first `classes`.

    Raises:
        DataError: If there are such examples; the message counts them.
    """
    labels = source.labels()
    unknown, beyond = int((labels < 0).sum()), int((labels >= classes).sum())
    if unknown or beyond:
        largest = f" (the largest is {labels.max()})" if beyond else ""
        raise DataError(
            f"Supervised training needs a class 0…{classes - 1} for every image: of {len(labels)} images, {unknown} have "
            f"none and {beyond} have a larger one{largest}. Name the class (--source.label-column, --source.label), set the "
            "number of classes (--training.architecture.output), or leave images out (--source.only)."
        )


def repeated_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Return a note on ids that several examples share.

    Only the index tells these apart.

    Examples:
        >>> from influence_ssl_jax.data.examples import repeated_ids
        >>> repeated_ids(["a", "b", "a"])
        ('ids that name more than one example, distinguished by the index: 1 (a)',)
    """
    again = [name for name, times in collections.Counter(ids).items() if times > 1]
    return note_names("ids that name more than one example, distinguished by the index", again)
