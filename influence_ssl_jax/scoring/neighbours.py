"""Find the nearest embeddings, in bounded memory and time."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.randomness import Stream

Chunks: TypeAlias = Callable[[], Iterable[tuple[Int[np.ndarray, " chunk"], Float32[np.ndarray, "chunk width"]]]]
"""A function that returns the numbers and embeddings of examples in pieces, from the beginning at each call."""
NONE = -1
"""The number of the nearest example of an example that has none."""

MAX_REFERENCE, MAX_PAIRS = 50_000, 2_500_000_000
"""Largest number of examples that neighbours are searched among, and of pairs that are compared."""
QUERIES = 1024
"""Examples whose similarities to all others are in memory together."""


def reference_size(
    usable: int, neighbours: int = 1, max_reference: int = MAX_REFERENCE, max_pairs: int = MAX_PAIRS
) -> int:
    """Return the number of embeddings that neighbours are searched among.

    Args:
        usable: Number of embeddings with a direction.
        neighbours: Neighbours of each.
        max_reference: Largest number to search among.
        max_pairs: Largest number of pairs to compare.

    Examples:
        >>> reference_size(10_000), reference_size(1_000_000)
        (10000, 2500)
    """
    return min(usable, max_reference, max(max_pairs // max(1, usable), neighbours + 1))


class Neighbours(NamedTuple):
    """The nearest other examples of some examples.

    Attributes:
        example: The numbers of the examples.
        distance: The mean cosine distance to their nearest neighbours; NaN without any.
        nearest: The number of the nearest example; `NONE` without any.
    """

    example: Int[np.ndarray, " examples"]
    distance: Float[np.ndarray, " examples"]
    nearest: Int[np.ndarray, " examples"]


def find_neighbours(
    embeddings: Float32[np.ndarray, "examples width"],
    neighbours: int = 1,
    seed: int = 0,
    max_reference: int = MAX_REFERENCE,
    index: Int[np.ndarray, " examples"] | None = None,
) -> Neighbours:
    """Find the neighbours of embeddings in memory, as `stream_neighbours` does.

    Args:
        embeddings: One row for each example.
        neighbours: Number of neighbours to average over.
        seed: The seed of the random subset.
        max_reference: Size of that subset.
        index: The numbers of the examples; their rows if None.

    Examples:
        >>> import numpy as np
        >>> neighbours = find_neighbours(np.asarray([[1, 0], [2, 0], [0, 1]], np.float32))
        >>> neighbours.distance.tolist(), neighbours.nearest[:2].tolist()
        ([0.0, 0.0, 1.0], [1, 0])
    """
    index = np.arange(len(embeddings)) if index is None else index
    (result,) = stream_neighbours(lambda: [(index, embeddings)], neighbours, seed, max_reference)
    return result


def stream_neighbours(
    chunks: Chunks,
    neighbours: int = 1,
    seed: int = 0,
    max_reference: int = MAX_REFERENCE,
    max_pairs: int = MAX_PAIRS,
) -> Iterator[Neighbours]:
    """Find the nearest other examples, and the mean cosine distance to them.

    The cosine distance of unit vectors u and u' is `½‖u − u'‖²`.

    The distance is zero for a duplicate. If there are more than R = min(max_reference, max_pairs / n) of n examples, the
    neighbours are searched among a random subset of size R (`reference_size`), and distances are larger. An embedding
    that is zero or not finite has no direction: its distance is NaN, and it is not a neighbour of others. Without enough
    other examples all distances are NaN. Memory: R embeddings, QUERIES × R similarities, and one chunk.

    Args:
        chunks: The numbers and embeddings of the examples; they are read three times.
        neighbours: Number of neighbours to average over.
        seed: The seed of the random subset.
        max_reference: Size of that subset.
        max_pairs: A bound of n R.

    Returns:
        The neighbours of each chunk, in order.
    """
    usable = sum(int(_has_direction(chunk).sum()) for _, chunk in chunks())
    if usable <= neighbours:
        yield from (_without_neighbours(index) for index, _ in chunks())
        return
    size, chosen = reference_size(usable, neighbours, max_reference, max_pairs), np.arange(min(usable, max_reference))
    if usable > size:
        chosen = np.sort(randomness.generator(seed, Stream.NEIGHBOURS).choice(usable, size, replace=False))
    picked = []
    for part in _unit_vectors(chunks):
        rows = chosen[slice(*np.searchsorted(chosen, [part.first, part.first + len(part.units)]))] - part.first
        picked.append((part.example[part.directed][rows], part.units[rows]))
    numbers, reference = (np.concatenate(columns) for columns in zip(*picked, strict=True))
    on_device = jax.device_put(reference)
    for part in _unit_vectors(chunks):
        units, result = part.units, _without_neighbours(part.example)
        distance, nearest = np.empty(len(units)), np.empty(len(units), np.int64)
        for start in range(0, len(units), QUERIES):
            rows = slice(start, start + QUERIES)
            asked, padded = units[rows], np.zeros((QUERIES, units.shape[1]), units.dtype)  # one shape, compiled once
            padded[: len(asked)] = asked
            places = np.asarray(_nearest(padded, on_device, min(neighbours + 1, len(reference))))[: len(asked)]
            itself = chosen[places] == part.first + start + np.arange(len(asked))[:, None]
            others = _others(places, itself)
            distance[rows], nearest[rows] = _mean_distance(asked, reference[others]), numbers[others[:, 0]]
        result.distance[part.directed], result.nearest[part.directed] = distance, nearest
        yield result


def _without_neighbours(index: Int[np.ndarray, " chunk"]) -> Neighbours:
    """Return examples that have no neighbour."""
    return Neighbours(index, np.full(len(index), np.nan), np.full(len(index), NONE))


def _has_direction(chunk: Float32[np.ndarray, "chunk width"]) -> Bool[np.ndarray, " chunk"]:
    """Test which embeddings are finite and not zero."""
    norms = _norms(chunk)
    return np.isfinite(norms) & (norms > 0)


def _norms(chunk: Float32[np.ndarray, "chunk width"]) -> Float[np.ndarray, " chunk"]:
    """Return the norm of every embedding."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.linalg.norm(chunk, axis=1)


class _Directed(NamedTuple):
    """The examples of a chunk that have a direction.

    Attributes:
        first: Number of such examples in the chunks before.
        example: The numbers of all examples of the chunk.
        directed: Which of them have a direction.
        units: The unit vectors of those.
    """

    first: int
    example: Int[np.ndarray, " chunk"]
    directed: Bool[np.ndarray, " chunk"]
    units: Float[np.ndarray, "units width"]


def _unit_vectors(chunks: Chunks) -> Iterator[_Directed]:
    """Yield the examples with a direction of each chunk."""
    first = 0
    for index, chunk in chunks():
        directed = _has_direction(chunk)
        rows = chunk[directed]
        yield _Directed(first, index, directed, rows / _norms(rows)[:, None])
        first += len(rows)


def _others(
    places: Int[np.ndarray, "queries k"], itself: Bool[np.ndarray, "queries k"]
) -> Int[np.ndarray, "queries k-1"]:
    """Remove the example itself from its neighbours."""
    # An example among duplicates may not come first in its own list; then the last one is dropped in its place.
    drop = np.where(itself.any(axis=1), itself.argmax(axis=1), places.shape[1] - 1)
    kept = np.ones_like(itself)
    kept[np.arange(len(places)), drop] = False
    return places[kept].reshape(len(places), -1)


def _mean_distance(
    units: Float[np.ndarray, "queries width"], others: Float[np.ndarray, "queries k width"]
) -> Float[np.ndarray, " queries"]:
    """Return the mean distance of each query to its neighbours."""
    return np.mean(np.sum((others - units[:, None]) ** 2, axis=2) / 2, axis=1)


@partial(jax.jit, static_argnums=2)
def _nearest(
    queries: Float[Array | np.ndarray, "queries width"], reference: Float[Array | np.ndarray, "reference width"], k: int
) -> Int[Array, "queries k"]:
    """Return the positions of the k most similar embeddings of each query."""
    similarity = jnp.dot(queries, reference.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(similarity, k)[1]
