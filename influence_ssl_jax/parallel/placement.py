"""Arrays on the devices of a mesh: split along their first axis, or whole on each."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.parallel.mesh import AXIS, Sharded, is_sharded, padded_length
from influence_ssl_jax.types import PyTree


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree of this process's rows as one tree of global arrays, split along the first axis over the mesh.

    Each process gives the rows of its own devices, in order; no process sees the others'.

    Raises:
        ValueError: The rows are not equally many for each device of this process, or its devices do not stand together.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    mine = owned(mesh)
    uneven = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if leaf.shape[0] % len(mine)}
    if uneven:
        raise ValueError(f"rows are split evenly over {len(mine)} devices of this process, got {sorted(uneven)} rows.")
    return _through_key_data(tree, lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)))


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree that all processes hold alike, whole on every device of the mesh; its `Sharded` arrays are split."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def whole(leaf: jax.Array | np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    def one(node: PyTree) -> PyTree:
        return _sharded(node, mesh) if is_sharded(node) else _through_key_data(node, whole)

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def everywhere(tree: PyTree, mesh: Mesh, local: Mesh) -> PyTree:
    """Global arrays of a mesh gathered, whole, onto each device of `local`, which this process owns alone.

    `Sharded` ones are gathered onto the devices of each process together, and split over these.
    """
    nodes, structure = jax.tree.flatten(tree, is_leaf=is_sharded)
    plain = jax.jit(lambda held: held, out_shardings=NamedSharding(mesh, PartitionSpec()))(
        [None if is_sharded(node) else node for node in nodes]
    )
    if mesh != local:
        plain = replicated(jax.tree.map(lambda leaf: leaf.addressable_data(0), plain), local)
    found = [_gathered(node, mesh, local) if is_sharded(node) else plain[i] for i, node in enumerate(nodes)]
    return jax.tree.unflatten(structure, found)


def undivided(tree: PyTree) -> PyTree:
    """A tree as one device would hold it: `Sharded` arrays of this process in one piece, without zeros, in its memory."""

    def one(node: PyTree) -> PyTree:
        if not is_sharded(node) or node.array.shape[0] == node.length:
            return node
        return dataclasses.replace(node, array=np.asarray(node.array)[: node.length])

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def _sharded(node: Sharded, mesh: Mesh) -> Sharded:
    """A `Sharded` array that all processes hold in one piece, split over a mesh."""
    whole = np.asarray(node.array)[: node.length]
    length = padded_length(node.length, mesh.size)

    def part(index: Any) -> np.ndarray:  # slices of every axis
        start, stop, _ = index[0].indices(length)
        held = whole[start:stop]
        return np.pad(held, [(0, stop - start - len(held)), *[(0, 0)] * (whole.ndim - 1)])

    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    array = jax.make_array_from_callback((length, *whole.shape[1:]), sharding, part)
    return dataclasses.replace(node, array=array)


def _gathered(node: Sharded, mesh: Mesh, local: Mesh) -> Sharded:
    """A `Sharded` array of all processes, split over the devices of each.

    Raises:
        InfluenceError: The processes have not equally many devices.
    """
    sharding = NamedSharding(local, PartitionSpec(AXIS))
    if mesh == local:
        return dataclasses.replace(node, array=jax.device_put(node.array, sharding))
    owners = [device.process_index for device in mesh.devices]
    counts = {owners.count(process) for process in owners}
    if len(counts) > 1:
        raise InfluenceError(
            "Rows that the devices of each process share (backend Gram) take equally many devices in every process, got "
            f"{[owners.count(process) for process in sorted(set(owners))]}."
        )
    grid = Mesh(mesh.devices.reshape(-1, local.size), ("processes", AXIS))
    length = padded_length(node.length, local.size)

    def cut(array: jax.Array) -> jax.Array:
        zeros = [(0, length - node.length), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array[: node.length], zeros)

    array = jax.jit(cut, out_shardings=NamedSharding(grid, PartitionSpec(AXIS)))(node.array)
    mine = set(local.devices.flat)
    parts = [shard.data for shard in array.addressable_shards if shard.device in mine]
    return dataclasses.replace(node, array=jax.make_array_from_single_device_arrays(array.shape, sharding, parts))


def batches_of(mesh: Mesh) -> Callable[[int], range]:
    """From a number of items to those that this process holds when they are split over the mesh.

    Numbers beyond the last item stand for padding: every device has equally many.
    """

    def part(count: int) -> range:
        each, mine = -(-count // mesh.size), owned(mesh)
        return range(each * mine.start, each * mine.stop)

    return part


def owned(mesh: Mesh) -> range:
    """The places of this process's devices in the mesh.

    Raises:
        ValueError: They do not stand next to one another, so that no run of rows is theirs.
    """
    mine = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    if not mine or mine != list(range(mine[0], mine[-1] + 1)):
        raise ValueError(
            f"the devices of a process stand together in a mesh, got places {mine} for process {jax.process_index()}; "
            "make the mesh by all_devices()."
        )
    return range(mine[0], mine[-1] + 1)


def _through_key_data(tree: PyTree, place: Callable[[jax.Array | np.ndarray], jax.Array]) -> PyTree:
    """`place` of every leaf; PRNG keys travel as their words."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(np.asarray(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return place(leaf)

    return jax.tree.map(one, tree)
