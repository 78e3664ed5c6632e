"""Meshes of devices, and arrays spread over them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from influence_ssl_jax.types import PyTree

AXIS = "devices"
"""The name of the only axis of every mesh."""

Items = TypeVar("Items")
Rows = TypeVar("Rows")


def all_devices(dividing: int | None = None) -> Mesh:
    """The devices of all processes, those of each next to one another; as many as divide a size evenly, where one is given.

    `jax.devices()` need not have that order: on a TPU slice one process owns the devices 0–3 and 8–11.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if dividing is not None:
        found = found[: next(count for count in range(len(found), 0, -1) if dividing % count == 0)]
    return _mesh(found)


def local_devices() -> Mesh:
    """The devices of this process."""
    return _mesh(sorted(jax.local_devices(), key=lambda device: device.id))


def _mesh(found: Sequence[Any]) -> Mesh:
    return Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))


def devices() -> int:
    """How many devices a computation that begins here is split over: 1 without a mesh, and within a split."""
    ambient = jax.sharding.get_abstract_mesh()
    return 1 if ambient.empty or AXIS in ambient.manual_axes else ambient.shape[AXIS]


def shards() -> int:
    """Return how many devices hold the parts of a `Sharded` array here: 1 outside a computation that is split."""
    ambient = jax.sharding.get_abstract_mesh()
    return ambient.shape[AXIS] if AXIS in ambient.manual_axes else 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharded:
    """An array whose first axis is split over the devices, equally, with zeros at its end.

    Attributes:
        array: The entries and the zeros; within a split computation, this device's part of both.
        length: Entries along the first axis without zeros.
    """

    array: Any  # an Array; a PartitionSpec or a shape where a tree of those has the state's structure
    length: int = dataclasses.field(metadata={"static": True})


def padded_length(length: int, count: int) -> int:
    """Return the length to which zeros fill up `length` entries that `count` devices share."""
    return -(-length // count) * count


def is_sharded(node: PyTree) -> bool:
    """Return whether a node of a tree is a `Sharded` array."""
    return isinstance(node, Sharded)


def specs_of(tree: PyTree) -> PyTree:
    """Return how the arrays of a tree lie on a mesh: `Sharded` ones split, all others whole on each device."""

    def one(node: PyTree) -> PyTree:
        return Sharded(PartitionSpec(AXIS), node.length) if is_sharded(node) else PartitionSpec()

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def over_examples(of_rows: Callable[[PyTree, Items], Rows]) -> Callable[[PyTree, Items], Rows]:
    """`of_rows(shared, rows)` with the leading axis of `rows` split over the devices and `shared` on each.

    For functions whose every row of output depends on its own row of input alone. Every device runs the program that one
    device would run for its rows, and nothing is communicated unless `shared` holds `Sharded` arrays: the numbers do not
    depend on how many devices there are.
    """
    if devices() == 1:
        return of_rows

    def split(shared: PyTree, rows: Items) -> Rows:
        specs = (specs_of(shared), PartitionSpec(AXIS))
        return jax.shard_map(of_rows, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)(shared, rows)

    return split


def sum_over_devices(total: Callable[[Items], Rows], items: Items) -> Rows:
    """`total(items)` for a sum over the leading axis of `items`: each device adds up its own, then all add those up.

    The order of summation, and so the last digits, depends on the number of devices.
    """
    if devices() == 1:
        return total(items)

    def of_part(part: Items) -> Rows:
        return jax.lax.psum(total(part), AXIS)

    return jax.shard_map(of_part, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(), check_vma=False)(items)


def exchange(parts: PyTree) -> PyTree:
    """Send part d of every array, along its first axis, to device d: entry e of the result came from device e.

    For computations that are split; all devices must run it.
    """
    return jax.tree.map(lambda part: jax.lax.all_to_all(part, AXIS, 0, 0), parts)


Task = TypeVar("Task", bound=PyTree)
Result = TypeVar("Result", bound=PyTree)


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], costs: Sequence[float | int]) -> list[Result]:
    """`[function(task) for task in tasks]`, each computed on one device of the mesh and then known to all.

    Args:
        function: Traceable; its result's shapes depend on the task's shapes alone.
        tasks: Trees of arrays.
        costs: What each task takes, in any unit: the longest are given out first, each to the least busy device.
    """
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
        return jax.lax.psum(mine, AXIS)  # all others add zeros

    devices_of = devices()
    return jax.shard_map(of_device, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)(list(tasks))


def owners(costs: Sequence[float | int], workers: int) -> list[int]:
    """Which worker does each task: in order of falling cost, each to the one with the least work so far."""
    load, owner = [0.0] * workers, [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda k: -costs[k]):
        owner[task] = min(range(workers), key=lambda worker: load[worker])
        load[owner[task]] += costs[task]
    return owner


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
