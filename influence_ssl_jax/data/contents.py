"""Compare a source's images, one by one, with digests taken before."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from influence_ssl_jax.data.examples import OpenSource, UnreadableExample, retry
from influence_ssl_jax.data.loader import map_in_order
from influence_ssl_jax.errors import DataError

CHUNK = 64
"""Number of examples that a thread compares at a time."""
SHOWN = 5
"""Number of changed images that a message names."""


@dataclasses.dataclass(frozen=True, order=True)
class Change:
    """An image that has changed.

    Attributes:
        index: Its number in the source.
        id: Its name.
        reason: What is different.
    """

    index: int
    id: str
    reason: str


def find_changes(
    source: OpenSource,
    indices: Int[np.ndarray, " count"],
    ids: Sequence[str],
    contents: Sequence[bytes | None],
    workers: int | None = None,
) -> list[Change]:
    """List the examples whose bytes do not have their earlier digest.

    Images are decoded only if the source cannot avoid it. An example whose digest is None had no readable image, and is
    not compared. Names, sizes and time stamps are not compared either.

    Args:
        source: The examples as they are now.
        indices: The examples to compare.
        ids: Their earlier names.
        contents: Their earlier digests.
        workers: Number of threads; None takes the default of `map_in_order`.

    Raises:
        DataError: As `data.examples.retry`.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.data import Arrays
        >>> from influence_ssl_jax.data.contents import find_changes
        >>> images = np.zeros((3, 2, 2), np.uint8)
        >>> source = Arrays(images).open()
        >>> before = [source.content(index) for index in range(3)]
        >>> images[1] = 7
        >>> [change.index for change in find_changes(source, np.arange(3), ["a", "b", "c"], before)]
        [1]
    """

    def of_chunk(start: int) -> list[Change]:
        changed = []
        for place in range(start, min(start + CHUNK, len(indices))):
            reason = _compare(source, int(indices[place]), contents[place])
            changed += [Change(int(indices[place]), ids[place], reason)] if reason else []
        return changed

    return [change for changed in map_in_order(of_chunk, range(0, len(indices), CHUNK), workers) for change in changed]


def refuse_changes(changed: Sequence[Change], since: str, advice: str) -> None:
    """Refuse a source with changed images, and name the first ones.

    Args:
        changed: The result of `find_changes`.
        since: Since when, in the words of the message: "since they were scored".
        advice: What to do, for the end of the message.

    Raises:
        DataError: If there are changes.
    """
    if changed:
        named = "".join(f"\n  {change.id} (example {change.index}): {change.reason}" for change in changed[:SHOWN])
        more = f"\n  … and {len(changed) - SHOWN:,} more" if len(changed) > SHOWN else ""
        raise DataError(f"{len(changed):,} images have changed {since}:{named}{more}\n{advice}")


def _compare(source: OpenSource, index: int, before: bytes | None) -> str:
    """Return what is different about an example; empty if nothing is."""
    if before is None:
        return ""
    if index >= len(source):
        return f"the source has {len(source):,} examples now"
    try:
        now = retry(source.content, index)
    except UnreadableExample as error:
        return f"it cannot be read any more: {error.skipped.reason}"
    return "" if now == before else "its bytes are different"
