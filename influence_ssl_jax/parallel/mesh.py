"""Spread computations and arrays over a mesh of devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.types import PyTree

AXIS = "devices"
"""The name of the only axis of every mesh."""

Items = TypeVar("Items")
Rows = TypeVar("Rows")
Total = TypeVar("Total")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that no memory is left.

    >>> is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
    True
    """
    said = str(error)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said or "out of memory" in said.lower()


def all_devices(dividing: int | None = None) -> Mesh:
    """Return the mesh of all processes' devices, each process's side by side.

    `jax.devices()` may have another order: on a TPU slice, one process owns the devices 0–3 and 8–11.

    Args:
        dividing: A size; the mesh takes the largest number of devices that divides it. None takes all devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if dividing is not None:
        devices = devices[: next(count for count in range(len(devices), 0, -1) if dividing % count == 0)]
    return _mesh(devices)


def local_devices() -> Mesh:
    """Return the mesh of the devices of this process."""
    return _mesh(sorted(jax.local_devices(), key=lambda device: device.id))


def _mesh(devices: Sequence[Any]) -> Mesh:
    """Return a mesh with one axis."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def devices() -> int:
    """Return how many devices share a computation that starts here.

    It is 1 without a mesh, and inside a computation that is divided already.
    """
    ambient = jax.sharding.get_abstract_mesh()
    return 1 if ambient.empty or AXIS in ambient.manual_axes else ambient.shape[AXIS]


def shards() -> int:
    """Return how many devices hold parts of a `Sharded` array here.

    It is 1 outside a computation that is split.
    """
    ambient = jax.sharding.get_abstract_mesh()
    return ambient.shape[AXIS] if AXIS in ambient.manual_axes else 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharded:
    """An array whose first axis is split equally over the devices.

    Zeros at its end make the parts equal.

    Attributes:
        array: The entries and the zeros; within a split computation, this device's part of both.
        length: Entries along the first axis without zeros.
    """

    array: Any  # an Array; a PartitionSpec or a shape where a tree of those has the state's structure
    length: int = dataclasses.field(metadata={"static": True})


def padded_length(length: int, count: int) -> int:
    """Return the length with zeros, so that `count` devices share it equally."""
    return -(-length // count) * count


def is_sharded(node: PyTree) -> bool:
    """Return whether a node of a tree is a `Sharded` array."""
    return isinstance(node, Sharded)


def specs_of(tree: PyTree) -> PyTree:
    """Return how a tree's arrays lie on a mesh.

    `Sharded` ones are split; all others are whole on each device.
    """

    def one(node: PyTree) -> PyTree:
        return Sharded(PartitionSpec(AXIS), node.length) if is_sharded(node) else PartitionSpec()

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def over_examples(of_rows: Callable[[PyTree, Items], Rows]) -> Callable[[PyTree, Items], Rows]:
    """Return `of_rows` with its rows split over the devices.

    The leading axis of `rows` is split, and `shared` is on each device. It is for functions whose every row of output
    depends on its own row of input alone. Every device runs the program that one device would run for its rows, and
    nothing is communicated unless `shared` holds `Sharded` arrays: the numbers do not depend on how many devices there
    are.
    """
    if devices() == 1:
        return of_rows

    def split(shared: PyTree, rows: Items) -> Rows:
        specs = (specs_of(shared), PartitionSpec(AXIS))
        return jax.shard_map(of_rows, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)(shared, rows)

    return split


def sum_and_gather(compute: Callable[[Items], tuple[Total, Rows]], items: Items) -> tuple[Total, Rows]:
    """Return `compute(items)`, a sum and rows.

    Each device computes those of its part. Parts are along the leading axis, and so are rows. The order of summation,
    and therefore rounding, depends on the number of devices.
    """
    if devices() == 1:
        return compute(items)

    def of_part(part: Items) -> tuple[Total, Rows]:
        total, rows = compute(part)
        return jax.lax.psum(total, AXIS), jax.lax.all_gather(rows, AXIS, tiled=True)

    return jax.shard_map(of_part, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(), check_vma=False)(items)


def exchange(parts: PyTree) -> PyTree:
    """Send part d of every array to device d.

    Parts lie along the first axis; entry e of the result came from device e. It is for computations that are split; all
    devices must run it.
    """
    return jax.tree.map(lambda part: jax.lax.all_to_all(part, AXIS, 0, 0), parts)


Task = TypeVar("Task", bound=PyTree)
Result = TypeVar("Result", bound=PyTree)


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], costs: Sequence[float | int]) -> list[Result]:
    """Return `[function(task) for task in tasks]`; one device computes each task, and all have the results.

    Args:
        function: A traceable function; the shapes of its result depend only on those of the task.
        tasks: Trees of arrays.
        costs: The cost of each task in any unit; see `owners`.
    """
    function = jax.jit(function, inline=True)  # traced once for all tasks of a shape
    if devices() == 1 or not tasks:
        return [function(task) for task in tasks]
    owner = owners(costs, devices())

    def share(device: int) -> Callable[[list[Task]], list[Result]]:
        def of(given: list[Task]) -> list[Result]:
            return [
                function(task) if owner[k] == device else _zeros(jax.eval_shape(function, task))
                for k, task in enumerate(given)
            ]

        return of

    def of_device(given: list[Task]) -> list[Result]:
        mine = jax.lax.switch(jax.lax.axis_index(AXIS), [share(device) for device in range(devices_of)], given)
        return jax.lax.psum(mine, AXIS)  # the other devices add zeros

    devices_of = devices()
    return jax.shard_map(of_device, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)(list(tasks))


def owners(costs: Sequence[float | int], workers: int) -> list[int]:
    """Assign tasks, most expensive first, to the worker with least work.

    Examples:
        >>> from influence_ssl_jax.parallel.mesh import owners
        >>> owners([5, 3, 3], workers=2)
        [0, 1, 1]
    """
    load, owner = [0.0] * workers, [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda k: -costs[k]):
        owner[task] = min(range(workers), key=lambda worker: load[worker])
        load[owner[task]] += costs[task]
    return owner


def _zeros(shapes: PyTree) -> PyTree:
    """Return zeros of the given shapes and types."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return all processes' rows as global arrays, split over the mesh.

    Args:
        tree: The rows of this process's devices, in their order; other processes do not see them.
        mesh: The mesh.

    Raises:
        ValueError: If the devices of this process would have different numbers of rows, or are not next to each other.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    mine = own_positions(mesh)
    uneven = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if leaf.shape[0] % len(mine)}
    if uneven:
        raise ValueError(
            f"The number of rows must be a multiple of the {len(mine)} devices of this process, got {sorted(uneven)} rows."
        )
    return _through_key_data(tree, lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return a tree that all processes hold, whole on every device.

    The devices are those of the mesh; `Sharded` arrays of the tree are split.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def whole(leaf: jax.Array | np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    def one(node: PyTree) -> PyTree:
        return _shard(node, mesh) if is_sharded(node) else _through_key_data(node, whole)

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def everywhere(tree: PyTree, mesh: Mesh, local: Mesh) -> PyTree:
    """Gather global arrays, whole, onto each device of `local`.

    They are arrays of `mesh`; only this process has `local`. `Sharded` ones are gathered onto the devices of each
    process together, and split over these.
    """
    nodes, structure = jax.tree.flatten(tree, is_leaf=is_sharded)
    plain = jax.jit(lambda held: held, out_shardings=NamedSharding(mesh, PartitionSpec()))(
        [None if is_sharded(node) else node for node in nodes]
    )
    if mesh != local:
        plain = replicate(jax.tree.map(lambda leaf: leaf.addressable_data(0), plain), local)
    arrays = [_gather(node, mesh, local) if is_sharded(node) else plain[i] for i, node in enumerate(nodes)]
    return jax.tree.unflatten(structure, arrays)


def gather_on_host(tree: PyTree) -> PyTree:
    """Join this process's `Sharded` arrays, without zeros, in the host's memory."""

    def one(node: PyTree) -> PyTree:
        if not is_sharded(node) or node.array.shape[0] == node.length:
            return node
        return dataclasses.replace(node, array=np.asarray(node.array)[: node.length])

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def _shard(node: Sharded, mesh: Mesh) -> Sharded:
    """Split a `Sharded` array, whole in every process, over a mesh."""
    whole = np.asarray(node.array)[: node.length]
    length = padded_length(node.length, mesh.size)

    def part(index: Any) -> np.ndarray:  # slices of every axis
        start, stop, _ = index[0].indices(length)
        held = whole[start:stop]
        return np.pad(held, [(0, stop - start - len(held)), *[(0, 0)] * (whole.ndim - 1)])

    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    array = jax.make_array_from_callback((length, *whole.shape[1:]), sharding, part)
    return dataclasses.replace(node, array=array)


def _gather(node: Sharded, mesh: Mesh, local: Mesh) -> Sharded:
    """Gather all processes' `Sharded` array, split over the devices of each.

    Raises:
        InfluenceError: If the processes have different numbers of devices.
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
    """Return a map from a number of items to this process's range.

    Every device has the same number of items; numbers beyond the last item are padding.
    """

    def part(count: int) -> range:
        each, mine = -(-count // mesh.size), own_positions(mesh)
        return range(each * mine.start, each * mine.stop)

    return part


def own_positions(mesh: Mesh) -> range:
    """Return the positions of this process's devices in the mesh.

    Raises:
        ValueError: If they are not next to each other.
    """
    mine = [place for place, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    if not mine or mine != list(range(mine[0], mine[-1] + 1)):
        raise ValueError(
            f"The devices of a process must be next to each other in a mesh, got positions {mine} for process "
            f"{jax.process_index()}; make the mesh by all_devices()."
        )
    return range(mine[0], mine[-1] + 1)


def _through_key_data(tree: PyTree, place: Callable[[jax.Array | np.ndarray], jax.Array]) -> PyTree:
    """Apply `place` to every leaf; PRNG keys are placed as their words."""

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(np.asarray(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return place(leaf)

    return jax.tree.map(one, tree)
