"""The trivial explanations that a score must beat: pixel variance and the distance to the nearest embedding."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Num
from sklearn.neighbors import NearestNeighbors


def pixel_variance(images: Num[Array, "batch height width channels"]) -> Float[Array, " batch"]:
    """Variance over all pixels and channels, pixels in [0, 1]: zero for a uniform image."""
    pixels = images / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images
    return jnp.var(pixels, axis=(1, 2, 3))


def knn_distance(
    embeddings: Float32[np.ndarray, "examples width"], neighbours: int = 1, seed: int = 0, max_reference: int = 50_000
) -> Float[np.ndarray, " examples"]:
    """Mean cosine distance `½‖u − u'‖²` to the nearest other embeddings: zero for a duplicate.

    Beyond `max_reference` examples the neighbours are searched among a random subset of that size, and distances come
    out larger. An embedding that is zero or not finite has no direction and gets NaN; it is nobody's neighbour. So does
    every example where there are too few others.

    Args:
        embeddings: One row per example.
        neighbours: How many to average over.
        seed: Fixes the random subset.
        max_reference: Size of that subset.
    """
    found = np.full(len(embeddings), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(embeddings, axis=1)
    usable = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    if len(usable) <= neighbours:
        return found
    units = embeddings[usable] / norms[usable, None]
    reference = np.arange(len(units))
    if len(units) > max_reference:
        reference = np.sort(np.random.default_rng(seed).choice(len(units), max_reference, replace=False))
    search = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(units[reference])
    _, places = search.kneighbors(units)
    itself = reference[places] == np.arange(len(units))[:, None]
    # An example among duplicates may not come first in its own list; then the last one is dropped in its place.
    drop = np.where(itself.any(axis=1), itself.argmax(axis=1), neighbours)
    kept = np.ones_like(itself)
    kept[np.arange(len(units)), drop] = False
    others = units[reference[places[kept].reshape(len(units), neighbours)]]
    found[usable] = np.mean(np.sum((others - units[:, None]) ** 2, axis=2) / 2, axis=1)
    return found
