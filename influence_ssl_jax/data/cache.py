"""A small data set decoded once and kept as the model reads it."""

import dataclasses
from functools import partial

import numpy as np
import pyarrow as pa

from influence_ssl_jax.data.loader import chunks, in_order, load
from influence_ssl_jax.data.source import Example, OpenSource, Skipped, UnreadableExample, digest
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import DataError

MAX_BYTES = 4 * 2**30
_CHUNK = 256


class Cached(OpenSource):
    """Transformed images in one uint8 array; indices, ids and what cannot be used are those of the source."""

    def __init__(self, source: OpenSource, transform: ToInput, examples: list[Example | Skipped]) -> None:
        self._source, self._transform = source, transform
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Example:
        """The transformed example."""
        example = self._examples[index]
        if isinstance(example, Skipped):
            raise UnreadableExample(example.index, example.id, example.reason)
        return example

    def attributes(self) -> pa.Table | None:
        """Those of the source."""
        return self._source.attributes()

    def fingerprint(self) -> str:
        """That of the source, and the transform."""
        return digest("cached", self._source.fingerprint(), repr(self._transform))

    def notes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self._source.notes()


def cached(source: OpenSource, transform: ToInput, max_bytes: int = MAX_BYTES) -> Cached:
    """The source decoded and transformed once, for many epochs with the same transform.

    Raises:
        DataError: The transformed images need more than `max_bytes`.
    """
    need = len(source) * transform.height * transform.width * transform.channels
    if need > max_bytes:
        shape = f"{transform.height}×{transform.width}×{transform.channels}"
        raise DataError(
            f"{len(source)} images of {shape} need {need / 2**30:.1f} GiB, more than the {max_bytes / 2**30:.1f} GiB "
            "allowed; stream from the source itself, or raise max_bytes."
        )
    pixels = np.empty((len(source), transform.height, transform.width, transform.channels), np.uint8)

    entries: dict[int, Example | Skipped] = {}
    for examples, skipped in in_order(partial(load, source, transform), chunks(np.arange(len(source)), _CHUNK)):
        for example in examples:
            pixels[example.index] = example.image
            entries[example.index] = dataclasses.replace(example, image=pixels[example.index])
        entries.update({each.index: each for each in skipped})
    return Cached(source, transform, [entries[index] for index in range(len(source))])
