"""What a data set is: a small hashable description that opens to numbered examples."""

import abc
import collections
import dataclasses
import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from influence_ssl_jax.errors import DataError

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
        super().__init__(f"example {index} ({id}): {reason}")
        self.skipped = Skipped(index, id, reason)


def attempt(read: Callable[..., Example], *arguments: Any) -> Example | Skipped:
    """`read(*arguments)`, or what it says is unreadable."""
    try:
        return read(*arguments)
    except UnreadableExample as error:
        return error.skipped


def passing(error: BaseException) -> bool:
    """Whether an error says nothing of the image: a lost connection, too many open files, no memory, no permission."""
    number = getattr(error, "errno", None)
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and number is not None and number not in DAMAGE
    )


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

    def read_many(self, indices: Sequence[int]) -> list[Example | Skipped]:
        """Several examples, or why there are none; overridden where reading together is faster."""
        return [attempt(self.read, index) for index in indices]

    @abc.abstractmethod
    def attributes(self) -> pa.Table | None:
        """What is known of every example beside its pixels, one row each, in order; None where nothing is."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes where examples were added, removed, reordered or replaced, without reading the pixels."""

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


class Source(abc.ABC):
    """A data set by description: a frozen dataclass, which is configuration, CLI entry and cache key at once."""

    @abc.abstractmethod
    def open(self) -> OpenSource:
        """Find the data and check it; reads no pixels where they are on disk.

        Raises:
            DataError: There is no such data set; the message says what to run or to change.
        """

    def absolute(self) -> "Source":
        """The same data set, found from any folder: relative paths are made absolute."""
        return self


def digest(*parts: str | bytes) -> str:
    """A short stable hash of a sequence of texts; their boundaries count."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
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
    return (f"{what}: {len(names)} ({', '.join(names[:shown])}{more})",)


def repeated_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """A note on the ids that several examples share: they are told apart by index alone."""
    again = [name for name, times in collections.Counter(ids).items() if times > 1]
    return counted("ids that name more than one example, told apart by the index", again)
