"""What a data set is: a small hashable description that opens to numbered examples."""

import abc
import collections
import dataclasses
import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.errors import DataError, printable

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

WAITS = (0.1, 1.0, 5.0)
"""Seconds before each further try of a read that failed for a reason outside the image."""
DAMAGE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
)
"""Errors of the operating system that belong to one entry of a folder: a second try is no help, and the others are whole."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One example as it is stored.

    Attributes:
        index: Its number in the source.
        id: Its name: a file, a key of the data set, or its number as text.
        image: Pixels [height, width] or [height, width, channels], integer or floating, before any transform.
        label: Its class where one is known.
        content: `content_digest` of what was read, before any transform; the loader computes it from `image` where a
            source has left it empty.
    """

    index: int
    id: str
    image: np.ndarray
    label: int | None = None
    content: bytes = b""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An example that could not be used, and why."""

    index: int
    id: str
    reason: str


class UnreadableExample(Exception):
    """One example cannot be used; the others can.

    Attributes:
        skipped: Which one, and why.
    """

    def __init__(self, index: int, id: str, reason: str) -> None:
        self.skipped = Skipped(index, printable(id), printable(reason))
        super().__init__(f"example {index} ({self.skipped.id}): {self.skipped.reason}")


def attempt(read: Callable[..., Example], *arguments: Any) -> Example | Skipped:
    """`read(*arguments)`, or what it says is unreadable."""
    try:
        return read(*arguments)
    except UnreadableExample as error:
        return error.skipped


class UnreachableError(OSError):
    """What holds the images cannot be read for now, whatever its own error says: no image is damaged."""


def passing(error: BaseException) -> bool:
    """Whether an error says nothing of the image: a lost connection, too many open files, no memory, no permission."""
    if isinstance(error, MemoryError | UnreachableError | TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in DAMAGE


def persistently(read: Callable[..., Result], *arguments: Any) -> Result:
    """Return `read(*arguments)`, tried again after WAITS seconds where the failure is not the image's.

    Raises:
        DataError: It failed every time for a reason that may pass; the message names it.
    """
    for wait in (*WAITS, None):
        try:
            return read(*arguments)
        except (OSError, MemoryError) as error:
            if not passing(error):
                raise
            said = str(error) or type(error).__name__
            if wait is None:
                raise DataError(
                    f"Images cannot be read: {said}, {len(WAITS) + 1} times in a row. That is no damage of an image, so "
                    "none is left out for it. Mend the cause, then give the same command again: what was finished is kept."
                ) from error
            _log.warning("images cannot be read (%s); trying again in %s s", said, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def read_all(source: "OpenSource", indices: Sequence[int]) -> Iterator[Example | Skipped]:
    """`source.read_many(indices)`, going on from where it failed as `persistently` does.

    Raises:
        DataError: It failed every time for a reason that may pass.
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
        yield persistently(following, done)


class OpenSource(abc.ABC):
    """An opened data set: examples by number, read in any order and from several threads at once."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples, readable or not."""

    @abc.abstractmethod
    def read(self, index: int) -> Example:
        """Example `index` of `range(len(self))`.

        Raises:
            UnreadableExample: Its image is missing, truncated or not an image.
        """

    def read_many(self, indices: Sequence[int]) -> Iterator[Example | Skipped]:
        """Read several examples, one after the other, so that one decoded image is in memory at a time.

        In place of an example that cannot be used comes the reason. Overridden where reading together is faster.
        """
        return (attempt(self.read, index) for index in indices)

    def ids(self) -> Sequence[str]:
        """Return the id of every example, in order; overridden where ids are known without decoding."""
        return [each.id for each in read_all(self, range(len(self)))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every example, −1 where it has none; overridden where classes are known undecoded."""
        read = read_all(self, range(len(self)))
        known = [each.label if isinstance(each, Example) else None for each in read]
        return np.array([-1 if label is None else label for label in known], np.int32)

    def truth(self) -> tuple[str, ...]:
        """Name the attributes that tell what the source itself planted; no other attribute is read as truth."""
        return ()

    @abc.abstractmethod
    def attributes(self) -> pa.Table | None:
        """What is known of every example beside its pixels, one row each, in order; None where nothing is."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes where examples were added, removed, renamed, resized or reordered.

        Classes and attributes count. Of images on disk their sizes count and their content does not: an image that was
        replaced by one of the same number of bytes under the same name leaves the hash as it is.
        """

    def class_names(self) -> tuple[str, ...] | None:
        """What the classes 0, 1, … are called, where names were numbered; None where the source has numbers."""
        return None

    def content(self, index: int) -> bytes:
        """The `content_digest` of example `index`; overridden where it needs no decoding.

        Raises:
            UnreadableExample: As `read`.
        """
        return content_of(self.read(index))

    def notes(self) -> tuple[str, ...]:
        """What was noticed on opening and does not prevent use, counted: one sentence each."""
        return ()


@dataclasses.dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """A data set by description: a frozen dataclass, which is configuration, CLI entry and cache key at once.

    Attributes:
        only: A file of the ids that are used, the others are left out: a list with one id a line (.txt), or a table
            (.csv, .tsv, .parquet) with a column `id`, and where it has a column `keep`, of the rows that say yes there.
    """

    only: str | None = dataclasses.field(default=None, kw_only=True)

    def open(self) -> OpenSource:
        """Find the data, check it, and leave out what `only` does not name; reads no pixels where they are on disk.

        Raises:
            DataError: There is no such data set, or `only` does not fit it; the message says what to run or to change.
        """
        if self.only is None:
            return self._open()
        from influence_ssl_jax.data.selection import selected  # it needs this module

        return selected(self._open(), self.only)

    def absolute(self) -> "Source":
        """Return the same data set, found from any folder: relative paths are made absolute."""
        return dataclasses.replace(self, only=absolute_path(self.only))

    @abc.abstractmethod
    def _open(self) -> OpenSource:
        """Find the whole data set and check it."""


def absolute_path(path: str | None) -> str | None:
    """Make a local path absolute; an address, and None, stay as they are."""
    return path if path is None or "://" in path else str(Path(path).expanduser().absolute())


def digest(*parts: str | bytes) -> str:
    """A short stable hash of a sequence of texts; their boundaries count."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


def content_digest(stored: bytes | np.ndarray) -> bytes:
    """Return 16 bytes of BLAKE2b over encoded bytes, or over an array's type, shape and bytes."""
    total = hashlib.blake2b(digest_size=16)
    if isinstance(stored, bytes):
        total.update(stored)
    else:
        total.update(f"{stored.dtype} {stored.shape}\n".encode())
        total.update(np.ascontiguousarray(stored).data)
    return total.digest()


def content_of(example: Example) -> bytes:
    """Return the digest that an example was read with, or that of its pixels where the source computed none."""
    return example.content or content_digest(example.image)


def counted(what: str, names: Sequence[str], shown: int = 3) -> tuple[str, ...]:
    """Nothing for no names, else one line: what, how many, and the first few of them."""
    if not names:
        return ()
    more = ", …" if len(names) > shown else ""
    return (f"{what}: {len(names)} ({', '.join(map(printable, names[:shown]))}{more})",)


def require_classes(source: OpenSource, classes: int) -> None:
    """Refuse a source in which an example has no class, or one that is not among the first `classes`.

    Raises:
        DataError: There are such examples; the message counts them.
    """
    labels = source.labels()
    unknown, beyond = int((labels < 0).sum()), int((labels >= classes).sum())
    if unknown or beyond:
        largest = f" (the largest is {labels.max()})" if beyond else ""
        raise DataError(
            f"Supervised training needs a class 0…{classes - 1} for every image: of {len(labels)} images {unknown} have "
            f"none and {beyond} one beyond{largest}. State the class (--source.label-column, --source.label), the number "
            "of classes (--training.architecture.output), or leave images out (--source.only)."
        )


def repeated_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """A note on the ids that several examples share: they are told apart by index alone."""
    again = [name for name, times in collections.Counter(ids).items() if times > 1]
    return counted("ids that name more than one example, told apart by the index", again)
