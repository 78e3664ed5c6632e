"""Measure images without a network: brightness, contrast, border, asymmetry, perceptual hash, nearest other image."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from scipy.fft import dctn

Images = UInt8[np.ndarray, "images height width 3"]
FRAME = 2
"""Pixels: the width of the frame whose uniformity is measured."""
UNIFORM = 0.05
"""A border is uniform where the standard deviation of its frame's pixels, in [0, 1], is below this in every channel."""
WHITE, BLACK = 0.9, 0.1
"""A uniform border is white where its mean is above the one, and black where it is below the other."""


def brightness(images: Images) -> Float[np.ndarray, " images"]:
    """Return the mean of all pixels, in [0, 1]."""
    return images.mean(axis=(1, 2, 3)) / 255


def contrast(images: Images) -> Float[np.ndarray, " images"]:
    """Return the standard deviation of the grey levels, in [0, 1]."""
    return _grey(images).std(axis=(1, 2))


def border(images: Images, width: int = FRAME) -> tuple[Float[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """Return spread and mean of the outermost pixels.

    Returns:
        Standard deviation over the frame of `width` pixels, the largest of the channels', and mean over all of them;
        pixels in [0, 1].
    """
    inner = np.zeros(images.shape[1:3], bool)
    inner[width:-width, width:-width] = True
    frame = images[:, ~inner] / 255.0
    return frame.std(axis=1).max(axis=1), frame.mean(axis=(1, 2))


def asymmetry(images: Images) -> Float[np.ndarray, " images"]:
    """Return 1 less the correlation of the grey image with its mirror image; 0 where all is one grey."""
    grey = _grey(images)
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    own, mirrored = np.sum(grey**2, axis=(1, 2)), np.sum(grey * grey[:, :, ::-1], axis=(1, 2))
    return 1 - np.divide(mirrored, own, out=np.ones_like(own), where=own > 1e-12)


def perceptual_hash(images: Images) -> Bool[np.ndarray, "images bits"]:
    """Return which of the lowest 8×8 cosine coefficients of the grey image, less the mean, exceed their median (pHash)."""
    size = min(8, *images.shape[1:3])
    low = np.asarray(dctn(_grey(images), axes=(1, 2), norm="ortho"))[:, :size, :size].reshape(len(images), -1)[:, 1:]
    return low > np.median(low, axis=1, keepdims=True)


def small_pixels(images: Images) -> Float[np.ndarray, "images numbers"]:
    """Return pixels in [0, 1], each the mean of 2×2."""
    count, height, width, channels = images.shape
    halved = images.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4)) / 255
    return halved.reshape(count, -1).astype(np.float32)


class Nearest(NamedTuple):
    """The nearest other image of every image.

    Attributes:
        row: Its row.
        distance: How far.
    """

    row: Int[np.ndarray, " images"]
    distance: Float[np.ndarray, " images"]


def nearest(vectors: Shaped[np.ndarray, "images numbers"], chunk: int = 1024) -> Nearest:
    """Find the nearest other row by Euclidean distance; of several the first."""
    vectors = np.asarray(vectors, np.float32)
    squares = np.sum(vectors**2, axis=1)
    rows = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), chunk):
        part = slice(start, start + chunk)
        squared = squares[None] - 2 * vectors[part] @ vectors.T
        squared[np.arange(len(squared)), np.arange(start, start + len(squared))] = np.inf
        rows[part] = squared.argmin(axis=1)
    differences = vectors.astype(np.float64) - vectors[rows]  # not the expanded square, which loses small distances
    return Nearest(rows, np.linalg.norm(differences, axis=1))


def _grey(images: Images) -> Float[np.ndarray, "images height width"]:
    """Return luma in [0, 1] (ITU-R 601)."""
    return images @ np.array([0.299, 0.587, 0.114]) / 255
