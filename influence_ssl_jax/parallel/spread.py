"""Independent tasks of different sizes, each done by one device: eigendecompositions of a network's layers."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from influence_ssl_jax.parallel.mesh import AXIS, devices
from influence_ssl_jax.types import PyTree

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
