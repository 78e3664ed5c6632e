"""Whether a source still holds the images that it held: digests of bytes, compared example by example."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from influence_ssl_jax.data.loader import in_order
from influence_ssl_jax.data.source import OpenSource, UnreadableExample, persistently
from influence_ssl_jax.errors import DataError

CHUNK = 64
"""Examples that a thread compares before it takes the next ones."""
SHOWN = 5
"""Changed images that a message names."""


@dataclasses.dataclass(frozen=True, order=True)
class Change:
    """An image that is not what it was.

    Attributes:
        index: Its number in the source.
        id: Its name.
        reason: What is different.
    """

    index: int
    id: str
    reason: str


def changes(
    source: OpenSource,
    indices: Int[np.ndarray, " count"],
    ids: Sequence[str],
    contents: Sequence[bytes | None],
    workers: int | None = None,
) -> list[Change]:
    """List the examples whose bytes are not those of a digest taken before.

    Nothing is decoded where the source can do without. An example whose digest is None is not compared: it had no
    image to be read. Names, sizes and time stamps play no part.

    Args:
        source: The examples as they are now.
        indices: Which to compare.
        ids: Their names then.
        contents: Their digests then.
        workers: Threads; as many as `in_order` takes where None.

    Raises:
        DataError: Reading failed again and again for a reason that is not an image's.
    """

    def of_chunk(start: int) -> list[Change]:
        found = []
        for place in range(start, min(start + CHUNK, len(indices))):
            reason = _changed(source, int(indices[place]), contents[place])
            found += [Change(int(indices[place]), ids[place], reason)] if reason else []
        return found

    return [change for found in in_order(of_chunk, range(0, len(indices), CHUNK), workers) for change in found]


def refuse_changes(found: Sequence[Change], since: str, advice: str) -> None:
    """Stop where an image has changed, naming the first ones.

    Args:
        found: What `changes` lists.
        since: What they were before, in the words of the message: "since they were scored".
        advice: What to do.

    Raises:
        DataError: There is any.
    """
    if found:
        named = "".join(f"\n  {change.id} (example {change.index}): {change.reason}" for change in found[:SHOWN])
        more = f"\n  … and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        raise DataError(f"{len(found):,} images have changed {since}:{named}{more}\n{advice}")


def _changed(source: OpenSource, index: int, before: bytes | None) -> str:
    """What is different; empty where nothing is."""
    if before is None:
        return ""
    if index >= len(source):
        return f"the source has {len(source):,} examples now"
    try:
        now = persistently(source.content, index)
    except UnreadableExample as error:
        return f"it cannot be read any more: {error.skipped.reason}"
    return "" if now == before else "its bytes are others"
