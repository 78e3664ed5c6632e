"""Read each image once for several readers of a data set."""

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from influence_ssl_jax.data.examples import Example, OpenSource, Skipped, read_all
from influence_ssl_jax.data.loader import Reading, to_input
from influence_ssl_jax.data.to_input import ToInput


@dataclasses.dataclass
class _Entry:
    """An image that one thread reads for several readers.

    Attributes:
        transforms: The transforms of the readers that want it.
        waiting: Number of readers that have not taken it.
        made: The example under each transform, or why it cannot be used.
    """

    transforms: frozenset[ToInput]
    waiting: int
    made: "Future[dict[ToInput, Example | Skipped]]" = dataclasses.field(default_factory=Future)


class SharedReading:
    """A source that is read and decoded once for several readers.

    The first reader that asks for an image decodes it, and transforms it for all that want it. An input is in memory
    until the last of them has taken it: readers that stay near each other need little memory. Readers of equal inputs
    share the transformed image too.

    Args:
        source: The examples.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays, ToInput
        >>> shared = SharedReading(Arrays(np.zeros((3, 8, 8), np.uint8)).open())
        >>> small, large = (shared.join(ToInput(size, size), np.ones(3, bool)) for size in (4, 6))
        >>> [read(np.asarray([2]))[0][0].image.shape for read in (small, large)]
        [(4, 4, 3), (6, 6, 3)]
    """

    def __init__(self, source: OpenSource) -> None:
        self._source, self._lock = source, threading.Lock()
        self._readers: list[tuple[ToInput, Bool[np.ndarray, " examples"]]] = []
        self._entries: dict[int, _Entry] = {}

    def join(self, transform: ToInput, wanted: Bool[np.ndarray, " examples"]) -> Reading:
        """Add a reader before the first reading; return its function for `batches`.

        Args:
            transform: The transform of its images.
            wanted: The examples that it will ask for, each once.
        """
        self._readers.append((transform, wanted))
        return partial(self._read, transform)

    def _read(self, transform: ToInput, indices: Int[np.ndarray, " count"]) -> tuple[list[Example], list[Skipped]]:
        """Read the images that no reader has requested, then wait."""
        asked, own = [], list[int]()
        with self._lock:
            for index in indices.tolist():
                if index not in self._entries:
                    wanting = [each for each, wanted in self._readers if wanted[index]]
                    self._entries[index] = _Entry(frozenset(wanting), len(wanting))
                    own.append(index)
                asked.append(self._entries[index])
        # A thread reads its own images before it waits for those of others, so two threads never wait for each other.
        self._make(own)
        made = [entry.made.result()[transform] for entry in asked]
        with self._lock:
            for index, entry in zip(indices.tolist(), asked, strict=True):
                entry.waiting -= 1
                if not entry.waiting:
                    del self._entries[index]
        usable = [each for each in made if isinstance(each, Example)]
        return usable, [each for each in made if isinstance(each, Skipped)]

    def _make(self, indices: Sequence[int]) -> None:
        """Read and transform images.

        An error is that of all who wait for them.
        """
        entries = [self._entries[index] for index in indices]
        done = 0
        try:
            for entry, read in zip(entries, read_all(self._source, indices), strict=True):
                entry.made.set_result({each: to_input(read, each) for each in entry.transforms})
                done += 1
        except BaseException as error:
            for entry in entries[done:]:
                entry.made.set_exception(error)
            raise
