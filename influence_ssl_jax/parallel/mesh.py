"""Spread computations and arrays over a mesh of devices."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from influence_ssl_jax.types import PyTree

AXIS = "devices"
"""The name of the only axis of every mesh."""

Items = TypeVar("Items")
Rows = TypeVar("Rows")


def all_devices(dividing: int | None = None) -> Mesh:
    """Return the mesh of the devices of all processes; those of a process are neighbours.

    `jax.devices()` may have another order: on a TPU slice, one process owns the devices 0–3 and 8–11.

    Args:
        dividing: A size; the mesh takes the largest number of devices that divides it. None takes all devices.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if dividing is not None:
        found = found[: next(count for count in range(len(found), 0, -1) if dividing % count == 0)]
    return _mesh(found)


def local_devices() -> Mesh:
    """Return the mesh of the devices of this process."""
    return _mesh(sorted(jax.local_devices(), key=lambda device: device.id))


def _mesh(found: Sequence[Any]) -> Mesh:
    """Return a mesh with one axis."""
    return Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))


def devices() -> int:
    """Return the number of devices that a computation started here is divided over.

    It is 1 without a mesh, and inside a computation that is divided already.
    """
    ambient = jax.sharding.get_abstract_mesh()
    return 1 if ambient.empty or AXIS in ambient.manual_axes else ambient.shape[AXIS]


def over_examples(of_rows: Callable[[PyTree, Items], Rows]) -> Callable[[PyTree, Items], Rows]:
    """`of_rows(shared, rows)` with the leading axis of `rows` split over the devices and `shared` on each.

    For functions whose every row of output depends on its own row of input alone. Nothing is communicated, and every
    device runs the program that one device would run for its rows: the numbers do not depend on how many there are.
    """
    if devices() == 1:
        return of_rows
    specs = (PartitionSpec(), PartitionSpec(AXIS))
    return jax.shard_map(of_rows, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)


def sum_over_devices(total: Callable[[Items], Rows], items: Items) -> Rows:
    """Return `total(items)`, a sum over the leading axis; each device sums its part.

    The order of summation, and therefore rounding, depends on the number of devices.
    """
    if devices() == 1:
        return total(items)

    def of_part(part: Items) -> Rows:
        return jax.lax.psum(total(part), AXIS)

    return jax.shard_map(of_part, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(), check_vma=False)(items)


Task = TypeVar("Task", bound=PyTree)
Result = TypeVar("Result", bound=PyTree)


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], costs: Sequence[float | int]) -> list[Result]:
    """Return `[function(task) for task in tasks]`; one device computes each task, and all have the results.

    Args:
        function: A traceable function; the shapes of its result depend only on those of the task.
        tasks: Trees of arrays.
        costs: The cost of each task in any unit; see `owners`.
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
        return jax.lax.psum(mine, AXIS)  # the other devices add zeros

    devices_of = devices()
    return jax.shard_map(of_device, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)(list(tasks))


def owners(costs: Sequence[float | int], workers: int) -> list[int]:
    """Assign tasks, the most expensive first, to the worker with the least work.

    Example:
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
    """Return the rows of all processes as global arrays, split over the mesh.

    Args:
        tree: The rows of this process's devices, in their order; other processes do not see them.
        mesh: The mesh.

    Raises:
        ValueError: If the devices of this process would have different numbers of rows, or are not next to each other.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    mine = owned(mesh)
    uneven = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if leaf.shape[0] % len(mine)}
    if uneven:
        raise ValueError(
            f"The number of rows must be a multiple of the {len(mine)} devices of this process, got {sorted(uneven)} rows."
        )
    return _through_key_data(tree, lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)))


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree that all processes hold alike, whole on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return _through_key_data(tree, lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)))


def everywhere(tree: PyTree, mesh: Mesh, local: Mesh) -> PyTree:
    """Global arrays of a mesh gathered, whole, onto each device of `local`, which this process owns alone."""
    whole = jax.jit(lambda held: held, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    if mesh == local:
        return whole
    return replicated(jax.tree.map(lambda leaf: leaf.addressable_data(0), whole), local)


def batches_of(mesh: Mesh) -> Callable[[int], range]:
    """Return a function from a number of split items to those of this process.

    Every device has the same number of items; numbers beyond the last item are padding.
    """

    def part(count: int) -> range:
        each, mine = -(-count // mesh.size), owned(mesh)
        return range(each * mine.start, each * mine.stop)

    return part


def owned(mesh: Mesh) -> range:
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
