"""Read rows of a matrix from a file, slab by slab."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from influence_ssl_jax.errors import StoreError

SLAB = 2**26
"""Bytes that are read at once."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiskRows:
    """The rows of one block in a file.

    They are an array [length, rows, span] in C order.

    It is a tree without leaves, so a compiled program knows where it reads. What it reads is the file's content when it
    runs: who calls it has compared the content with its digests.

    Attributes:
        path: The file.
        start: The byte at which the block begins.
        length: Number of spans.
        rows: Number of rows.
        span: Parameters of a span.
        dtype: Type of the numbers, by name.
        at_once: Spans that are read at once.
    """

    path: str = dataclasses.field(metadata={"static": True})
    start: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    rows: int = dataclasses.field(metadata={"static": True})
    span: int = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    at_once: int = dataclasses.field(metadata={"static": True})

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes of the block."""
        return self.length * self.rows * self.span * self.itemsize

    def read(self, first: Int[Array, ""], count: int) -> Float[Array, "count rows span"]:
        """Read `count` spans from number `first` on, when the program runs."""
        shape = jax.ShapeDtypeStruct((count, self.rows, self.span), jnp.dtype(self.dtype))
        return jax.pure_callback(partial(self._load, count), shape, first)

    def _load(self, count: int, first: Int[Array | np.ndarray, ""]) -> Float[np.ndarray, "count rows span"]:
        """Read spans into the host's memory.

        Raises:
            StoreError: The file ends before.
        """
        each = self.rows * self.span * self.itemsize
        place, content = self.start + int(first) * each, np.empty(count * each, np.uint8)
        left = content.data
        file = os.open(self.path, os.O_RDONLY)
        try:
            if sys.platform == "linux":  # the kernel reads the next slab while this one is multiplied
                os.posix_fadvise(file, place, 2 * len(content), os.POSIX_FADV_WILLNEED)
            while left:
                got = os.preadv(file, [left], place + len(content) - len(left))
                if not got:
                    raise StoreError(
                        f"{self.path} ends before byte {place + len(content):,}: it was cut off while it was read. Give the "
                        "same command again: missing rows are formed again."
                    )
                left = left[got:]
        finally:
            os.close(file)
        return content.view(jnp.dtype(self.dtype)).reshape(count, self.rows, self.span)


def lay_out(path: Path, shapes: Sequence[tuple[int, int, int]], dtype: jax.typing.DTypeLike) -> tuple[DiskRows, ...]:
    """Place blocks in a file, one after the other.

    Args:
        path: The file.
        shapes: Spans, rows and parameters of a span, of every block.
        dtype: Type of the numbers.
    """
    name, places, start = jnp.dtype(dtype).name, [], 0
    for length, rows, span in shapes:
        size = math.prod((rows, span)) * jnp.dtype(dtype).itemsize
        at_once = min(length, max(1, SLAB // size))
        places.append(DiskRows(str(path.absolute()), start, length, rows, span, name, at_once))
        start += length * size
    return tuple(places)
