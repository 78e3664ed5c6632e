"""How much memory scoring takes, known before it runs, and the batch size that fits."""

import os
from typing import NamedTuple

import jax
import numpy as np

from influence_ssl_jax.curvature.blocks import ENTRIES
from influence_ssl_jax.curvature.gradients import recorded_size
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisBackend
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.types import Frozen, Params, PyTree

LIVE = 3.0
"""Times that everything layers read and wrote is in memory together: forward pass, backward pass, and the copies between."""
LARGEST = {"cpu": 64}
"""Batch sizes beyond which nothing is gained, by platform; 512 elsewhere."""


class Memory(NamedTuple):
    """Peak memory of scoring b examples at a time on one device: `fixed + b · per_example` bytes.

    `fixed = |parameters| + |fitted state| + 4 ENTRIES`, the fitted state being rank² numbers and their eigenvectors for
    each layer of a low-rank backend; `per_example = |image| + draws · views · LIVE · 4 Σ_layers (read + written)`, over
    the numbers that a layer reads and writes for one view. Neither holds a number of examples times a number of
    parameters, nor times a number of patches: patches exist for a few examples, ENTRIES numbers at most. Only a backend
    that forms whole gradients (Exact, CG and their like) adds `draws · 4 |parameters|` to each example.
    """

    fixed: int
    per_example: int

    def peak(self, batch_size: int) -> int:
        """Bytes for a batch."""
        return self.fixed + batch_size * self.per_example

    def batch_size(self, available: int, platform: str) -> int:
        """The largest power of two that fits into half of the memory that is there, at least 1."""
        most, size = LARGEST.get(platform, 512), 1
        while 2 * size <= most and 2 * self.peak(2 * size) <= available:
            size *= 2
        return size


def memory_of(
    measurement: Objective,
    params: Params,
    frozen: Frozen,
    backend: Backend,
    state: PyTree,
    image_shape: tuple[int, ...],
    draws: int,
) -> Memory:
    """The formula for a measurement and a fitted backend, from shapes alone."""
    dtype = jax.tree.leaves(params)[0].dtype
    passed = recorded_size(measurement.network, params, frozen, image_shape)
    width = dtype.itemsize
    per_view = LIVE * width * (passed + np.prod(image_shape))
    whole = 0 if isinstance(backend, EigenbasisBackend) else 4 * _bytes(params)
    per_example = int(np.prod(image_shape)) + draws * (measurement.loss.views * int(per_view) + whole)
    return Memory(_bytes((params, frozen, state)) + width * ENTRIES, per_example)


def available() -> tuple[int, str]:
    """Bytes of memory that each device of this process has, and the platform."""
    device = jax.local_devices()[0]
    found = device.memory_stats() or {}
    if "bytes_limit" in found:
        return int(found["bytes_limit"]), device.platform
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // jax.local_device_count(), device.platform


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
