"""What a data set is: a small hashable description that opens to numbered examples."""

import abc
import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Example:
    """One example as it is stored.

    Attributes:
        index: Its number in the source.
        id: Its name: a file, a key of the data set, or its number as text.
        image: Pixels [height, width] or [height, width, channels], integer or floating, before any transform.
        label: Its class where one is known.
    """

    index: int
    id: str
    image: np.ndarray
    label: int | None = None


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


def digest(*parts: str | bytes) -> str:
    """A short stable hash of a sequence of texts; their boundaries count."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


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
