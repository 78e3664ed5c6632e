"""One axis of devices, and the two ways in which a computation is split along it.

A program that asks for neither knows nothing of devices: without a mesh (`jax.set_mesh(all_devices())`) every function
here is the plain computation.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from influence_ssl_jax.types import PyTree

AXIS = "devices"
"""The name of the only axis of every mesh."""

Items = TypeVar("Items")
Rows = TypeVar("Rows")


def all_devices(dividing: int | None = None) -> Mesh:
    """The devices of all processes; where a size is given, as many of them as divide it evenly."""
    found = jax.devices()
    if dividing is not None:
        found = found[: next(count for count in range(len(found), 0, -1) if dividing % count == 0)]
    return _mesh(found)


def local_devices() -> Mesh:
    """The devices of this process."""
    return _mesh(jax.local_devices())


def _mesh(found: Sequence[Any]) -> Mesh:
    return Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))


def devices() -> int:
    """How many devices a computation that begins here is split over: 1 without a mesh, and within a split."""
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
    """`total(items)` for a sum over the leading axis of `items`: each device adds up its own, then all add those up.

    The order of summation, and so the last digits, depends on the number of devices.
    """
    if devices() == 1:
        return total(items)

    def of_part(part: Items) -> Rows:
        return jax.lax.psum(total(part), AXIS)

    return jax.shard_map(of_part, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(), check_vma=False)(items)
