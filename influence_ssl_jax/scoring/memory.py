"""Compute the memory that scoring takes, and the batch size that fits."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.blocks import entries_at_once
from influence_ssl_jax.curvature.gradients import recorded_size
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.parallel import is_sharded, padded_length
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.types import Frozen, Params, PyTree

LIVE = 3.0
"""How often all that layers read and write is in memory: forward pass, backward pass, and copies between them."""
BANDWIDTH = 2e9
"""Bytes that a good local disk reads in a second, for estimates in messages."""
LARGEST = {"cpu": 64}
"""Batch sizes above which nothing is gained, by platform; 512 on other platforms."""


class Memory(NamedTuple):
    """Peak memory per device of scoring b examples at once: `fixed + b · per_example` bytes.

    `fixed = |parameters| + |fitted state| + 4 E + 4 w_fixed`, with E of `curvature.blocks.entries_at_once`. The fitted
    state of a low-rank backend is rank² numbers and their eigenvectors for each layer; that of Gram is rows × |parameters|
    numbers, of which each device has its share if several share them.
    `per_example = |image| + draws · (views · LIVE · 4 Σ_layers (read + written) + 4 w_draw)`, with the numbers that a
    layer reads and writes for one view, and the numbers w that a backend's form holds (`Backend.workspace`). w_draw is
    zero or small for a backend that forms no whole gradients, and a small multiple of |parameters| for Exact, CG and
    similar backends. Patches exist for a few examples, E numbers at most. Gram, which forms gradients layer by layer, adds
    the 12 E bytes of a few examples to what is fixed, and 16 E more for what devices send to each other if they share its
    rows; E is then at least `Gram.formed_at_once`, patches included.

    Attributes:
        fixed: Bytes whatever the batch.
        per_example: Bytes for each example of a batch.

    Examples:
        >>> Memory(fixed=1000, per_example=100).peak(8), Memory(1000, 100).batch_size(2600, "cpu")
        (1800, 8)
    """

    fixed: int
    per_example: int

    def peak(self, batch_size: int) -> int:
        """Return the bytes for a batch."""
        return self.fixed + batch_size * self.per_example

    def batch_size(self, memory: int, platform: str, held: int = 0) -> int:
        """Return the largest power of two that takes half the free memory.

        Free is what is not fixed and not held by others. The size is at least 1.

        Args:
            memory: Bytes of a device.
            platform: The platform, whose LARGEST is not exceeded.
            held: Bytes that others hold.
        """
        most, free, size = LARGEST.get(platform, 512), memory - held - self.fixed, 1
        while 2 * size <= most and 2 * (2 * size * self.per_example) <= free:
            size *= 2
        return size


def estimate_memory(
    measurement: Objective,
    params: Params,
    frozen: Frozen,
    backend: Backend,
    state: PyTree,
    image_shape: tuple[int, ...],
    draws: int,
) -> Memory:
    """Estimate the memory of a measurement and backend, from shapes alone.

    Args:
        measurement: The objective that is scored.
        params: The parameters.
        frozen: Frozen state of the network.
        backend: The backend.
        state: Its fitted state, or the shapes of it.
        image_shape: (height, width, channels).
        draws: Draws of each example.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    passed = recorded_size(measurement.network, params, frozen, image_shape)
    width = dtype.itemsize
    per_view = LIVE * width * (passed + np.prod(image_shape))
    fixed, per_draw = backend.workspace(state, trees.size(params))
    per_example = int(np.prod(image_shape)) + draws * (measurement.loss.views * int(per_view) + width * per_draw)
    shared = _sharing(state)
    entries = entries_at_once()
    if isinstance(backend, Gram):
        entries = (4 if shared == 1 else 8) * max(entries, backend.formed_at_once(state))
    held = bytes_on_device((params, frozen, state), shared)
    return Memory(held + width * (entries + fixed), per_example)


def check_fit(
    leaves: Sequence[jax.ShapeDtypeStruct],
    lengths: Sequence[int | None],
    backend: Backend,
    devices: int = 1,
    held: int = 0,
) -> None:
    """Refuse a state that exceeds a device's memory, before anything is computed.

    Args:
        leaves: Shapes of the state's arrays (`scoring.fitting.shapes`), as one device would hold it.
        lengths: For each array, its length without padding if devices share it, else None.
        backend: The backend.
        devices: Number of devices of a process that share it.
        held: Bytes that others hold on each device.

    Raises:
        InfluenceError: The state does not fit.
    """
    needed = sum(_array_bytes(leaf, length, devices) for leaf, length in zip(leaves, lengths, strict=True))
    memory, platform = available_memory()
    if needed > memory - held:
        rows = sum(
            _array_bytes(leaf, length, 1) for leaf, length in zip(leaves, lengths, strict=True) if length is not None
        )
        others = f", of which the encoders before it need {held / 2**30:.1f} GiB: score fewer together" if held else ""
        disk = ""
        if isinstance(backend, Gram) and backend.rows == "memory" and devices == 1:
            file = rows if backend.storage == "working" else 2 * rows  # beside rows in bfloat16, what they lack
            disk = (
                f"; rows='disk' (--backend.rows disk) keeps them in a file of {file / 2**30:.1f} GiB, which every batch of "
                f"images reads ({rows / BANDWIDTH:.0f} s at {BANDWIDTH / 1e9:.0f} GB/s)"
            )
        raise InfluenceError(
            f"{type(backend).__name__} keeps {needed / 2**30:.1f} GiB on each device for this network and curvature set, "
            f"and one device ({platform}) has {memory / 2**30:.1f} GiB{others}. Take fewer curvature examples or samples "
            f"(Gram keeps one gradient for each, and the devices of a process share them{disk}), Gram with "
            "storage='bfloat16', or a backend that keeps less, such as LoGra."
        )


def available_memory() -> tuple[int, str]:
    """Return the usable bytes of each local device, and the platform.

    Devices on a host share its memory. It is bounded by the control group of the process (a container, a job of a
    scheduler), and what other processes hold is subtracted.
    """
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"]), device.platform
    return host_memory() // jax.local_device_count(), device.platform


def host_memory(root: Path = Path("/")) -> int:
    """Return the bytes of a Linux host that this process may use.

    What the process holds already is included. It is the smallest of: the host's memory; what is free for programs; and
    the limit of every control group, of either version, that the process is in.

    Args:
        root: The folder that holds `proc` and `sys`.
    """
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = next(iter(_numbers(root / "proc/self/statm")[1:2]), 0) * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            bounds.append(int(line.split()[1]) * 1024 + own)
    groups = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base, name = (groups, "memory.max") if not controllers else (groups / "memory", "memory.limit_in_bytes")
        if controllers and "memory" not in controllers.split(","):
            continue
        place = base / path.lstrip("/")
        for group in (place, *place.parents):  # a limit of any group above holds too
            bounds += _numbers(group / name)
            if group == base:
                break
    return min(bound for bound in bounds if bound > 0)


def _lines(file: Path) -> list[str]:
    """Read the lines of a kernel's file; none if it is absent."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _numbers(file: Path) -> list[int]:
    """Read the whole numbers in the first line of a file.

    A limit of `max` is none.
    """
    return [int(word) for line in _lines(file)[:1] for word in line.split() if word.isdecimal()]


def _sharing(state: PyTree) -> int:
    """Count the devices that share the `Sharded` arrays of a state."""
    for node in jax.tree.leaves(state, is_leaf=is_sharded):
        if is_sharded(node) and isinstance(node.array, jax.Array):
            return node.array.shape[0] // node.array.sharding.shard_shape(node.array.shape)[0]
    return 1


def bytes_on_device(tree: PyTree, devices: int) -> int:
    """Return the bytes of a tree on each of some devices.

    They share its `Sharded` arrays and have all others whole.
    """

    def one(node: PyTree) -> int:
        return _array_bytes(node.array, node.length, devices) if is_sharded(node) else _array_bytes(node, None, devices)

    return sum(map(one, jax.tree.leaves(tree, is_leaf=is_sharded)))


def _array_bytes(array: jax.Array | jax.ShapeDtypeStruct, length: int | None, devices: int) -> int:
    """Return the bytes of an array on each device.

    Devices share an array that has a known length without padding.
    """
    if length is None:
        return array.size * array.dtype.itemsize
    return padded_length(length, devices) // devices * math.prod(array.shape[1:]) * array.dtype.itemsize
