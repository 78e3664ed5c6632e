"""Several processes, each with its own devices and its own part of the data, as one run."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int

from influence_ssl_jax.errors import InfluenceError

Result = TypeVar("Result")
_barriers = itertools.count()
_FOR_EVER = 30 * 24 * 3600 * 1000
"""Milliseconds: longer than any run."""
_GOODBYE = 30
"""Seconds that a process that ends waits for the others to end too."""


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Which process of how many this is; all three are found by themselves under SLURM, Open MPI and on a TPU pod.

    Where they are not given, the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are read.

    Attributes:
        coordinator: Address of the first process, host:port.
        processes: How many processes there are.
        process: The number of this one, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def start(settings: Distributed, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, where there are any; before the first array is made.

    Raises:
        InfluenceError: Only part of what must be known is given, or the others do not answer.
    """
    if jax.distributed.is_initialized():
        return
    given = resolved(settings, environment)
    if given is None:
        return
    try:
        jax.distributed.initialize(given.coordinator, given.processes, given.process, shutdown_timeout_seconds=_GOODBYE)
    except (RuntimeError, ValueError) as error:
        raise InfluenceError(
            f"The processes of this run did not find each other ({error}). Check that every one was started with the "
            "same coordinator address and number of processes, each with its own number, and that the port is free."
        ) from error


def resolved(settings: Distributed, environment: Mapping[str, str]) -> Distributed | None:
    """What to join, with everything None where JAX finds it by itself; None for a process on its own.

    Raises:
        InfluenceError: Only part of it is given.
    """
    count, number = environment.get("JAX_NUM_PROCESSES"), environment.get("JAX_PROCESS_ID")
    found = Distributed(
        settings.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        settings.processes if settings.processes is not None else _whole(count),
        settings.process if settings.process is not None else _whole(number),
    )
    values = dataclasses.astuple(found)
    if all(value is not None for value in values):
        return found
    if any(value is not None for value in values) and not _launched(environment):
        missing = [name for name, value in dataclasses.asdict(found).items() if value is None]
        raise InfluenceError(
            f"A run of several processes needs coordinator, processes and process; missing: {', '.join(missing)}. Give "
            "them as --distributed.… or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        )
    return found if _launched(environment) else None


def _launched(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler started several processes that JAX can ask it about."""
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several = any((_whole(environment.get(name)) or 1) > 1 for name in sizes)
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _whole(text: str | None) -> int | None:
    return int(text) if text else None


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes, however long one of them takes; where one dies, all end.

    Through the coordination service, whose waiting has no time limit of its own, unlike a collective's.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"{name} {next(_barriers)}", timeout_ms=_FOR_EVER)


def first_only(action: Callable[[], Result]) -> Result | None:
    """What the first process gets from `action` while the others wait; None in those.

    Raises:
        InfluenceError: It failed there. In the first process, its own error.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    if is_first():
        try:
            result = action()
        except Exception as error:
            failure = error
    barrier("first")
    good = agreed(failure is None)
    if failure is not None:
        raise failure
    if not good:
        raise InfluenceError("The first process of the run has given up; its own message says why.")
    return result


def agreed(flag: bool) -> bool:
    """What the first process says, in all of them."""
    return bool(_from_first(flag)) if jax.process_count() > 1 else flag


def summed(count: int) -> int:
    """The sum of a number over the processes."""
    if jax.process_count() == 1:
        return count
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.asarray(count)).sum())


def _from_first(flag: bool) -> np.ndarray:
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(np.asarray(flag))


def part_of(items: Int[np.ndarray, " count"]) -> Int[np.ndarray, " part"]:
    """This process's part of a list that every process holds alike: one run of it, as long as any other's, ± 1."""
    return np.array_split(items, jax.process_count())[jax.process_index()]
