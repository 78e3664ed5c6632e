"""The distance to the nearest embeddings: a baseline, in bounded memory and time whatever the number of examples."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.randomness import Stream

Chunks: TypeAlias = Callable[[], Iterable[Float32[np.ndarray, "chunk width"]]]
"""Embeddings a piece at a time, from the beginning whenever they are asked for."""

MAX_REFERENCE, MAX_PAIRS = 50_000, 2_500_000_000
"""Neighbours are searched among so many examples at most, and so that so many pairs at most are looked at."""
QUERIES = 1024
"""Examples whose similarities to all others are in memory together."""


def reference_size(
    usable: int, neighbours: int = 1, max_reference: int = MAX_REFERENCE, max_pairs: int = MAX_PAIRS
) -> int:
    """How many of `usable` embeddings the neighbours of each are searched among."""
    return min(usable, max_reference, max(max_pairs // max(1, usable), neighbours + 1))


def knn_distance(
    embeddings: Float32[np.ndarray, "examples width"],
    neighbours: int = 1,
    seed: int = 0,
    max_reference: int = MAX_REFERENCE,
) -> Float[np.ndarray, " examples"]:
    """`stream_knn_distance` of embeddings in memory."""
    return np.concatenate(list(stream_knn_distance(lambda: [embeddings], neighbours, seed, max_reference)))


def stream_knn_distance(
    chunks: Chunks,
    neighbours: int = 1,
    seed: int = 0,
    max_reference: int = MAX_REFERENCE,
    max_pairs: int = MAX_PAIRS,
) -> Iterator[Float[np.ndarray, " chunk"]]:
    """Mean cosine distance `½‖u − u'‖²` to the nearest other embeddings: zero for a duplicate.

    Of n examples, beyond R = min(max_reference, max_pairs / n) the neighbours are searched among a random subset of
    size R (`reference_size`), and distances come out larger. An embedding that is zero or not finite has no direction
    and gets NaN; it is nobody's neighbour. So does every example where there are too few others. Memory: R embeddings,
    QUERIES × R similarities, one chunk.

    Args:
        chunks: One row per example, read three times.
        neighbours: How many to average over.
        seed: Fixes the random subset.
        max_reference: Size of that subset.
        max_pairs: Bounds n R.

    Returns:
        One array for each chunk, in order.
    """
    usable = sum(int(_has_direction(chunk).sum()) for chunk in chunks())
    if usable <= neighbours:
        yield from (np.full(len(chunk), np.nan) for chunk in chunks())
        return
    size, chosen = reference_size(usable, neighbours, max_reference, max_pairs), np.arange(min(usable, max_reference))
    if usable > size:
        chosen = np.sort(randomness.generator(seed, Stream.NEIGHBOURS).choice(usable, size, replace=False))
    picked = [
        units[chosen[slice(*np.searchsorted(chosen, [first, first + len(units)]))] - first]
        for first, _, units in _unit_vectors(chunks)
    ]
    reference = np.concatenate(picked)
    held = jax.device_put(reference)
    for first, directed, units in _unit_vectors(chunks):
        found, own = np.full(len(directed), np.nan), np.empty(len(units))
        for start in range(0, len(units), QUERIES):
            rows = slice(start, start + QUERIES)
            asked, padded = units[rows], np.zeros((QUERIES, units.shape[1]), units.dtype)  # one shape, compiled once
            padded[: len(asked)] = asked
            places = np.asarray(_nearest(padded, held, min(neighbours + 1, len(reference))))[: len(asked)]
            itself = chosen[places] == first + start + np.arange(len(asked))[:, None]
            own[rows] = _mean_distance(asked, reference[_others(places, itself)])
        found[directed] = own
        yield found


def _has_direction(chunk: Float32[np.ndarray, "chunk width"]) -> Bool[np.ndarray, " chunk"]:
    norms = _norms(chunk)
    return np.isfinite(norms) & (norms > 0)


def _norms(chunk: Float32[np.ndarray, "chunk width"]) -> Float[np.ndarray, " chunk"]:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.linalg.norm(chunk, axis=1)


def _unit_vectors(chunks: Chunks) -> Iterator[tuple[int, Bool[np.ndarray, " chunk"], Float[np.ndarray, "units width"]]]:
    """How many examples before a chunk have a direction; which of the chunk do; and their unit vectors."""
    first = 0
    for chunk in chunks():
        directed = _has_direction(chunk)
        rows = chunk[directed]
        yield first, directed, rows / _norms(rows)[:, None]
        first += len(rows)


def _others(
    places: Int[np.ndarray, "queries k"], itself: Bool[np.ndarray, "queries k"]
) -> Int[np.ndarray, "queries k-1"]:
    """The neighbours without the example itself."""
    # An example among duplicates may not come first in its own list; then the last one is dropped in its place.
    drop = np.where(itself.any(axis=1), itself.argmax(axis=1), places.shape[1] - 1)
    kept = np.ones_like(itself)
    kept[np.arange(len(places)), drop] = False
    return places[kept].reshape(len(places), -1)


def _mean_distance(
    units: Float[np.ndarray, "queries width"], others: Float[np.ndarray, "queries k width"]
) -> Float[np.ndarray, " queries"]:
    return np.mean(np.sum((others - units[:, None]) ** 2, axis=2) / 2, axis=1)


@partial(jax.jit, static_argnums=2)
def _nearest(
    queries: Float[Array | np.ndarray, "queries width"], reference: Float[Array | np.ndarray, "reference width"], k: int
) -> Int[Array, "queries k"]:
    similarity = jnp.dot(queries, reference.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(similarity, k)[1]
