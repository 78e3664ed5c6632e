"""Several processes, each with its own devices and its own part of the data, as one run."""

import atexit
import contextlib
import ctypes
import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int

from influence_ssl_jax.errors import InfluenceError, PartnerError
from influence_ssl_jax.parallel.mesh import all_devices, split
from influence_ssl_jax.signals import leave_at_once

Result = TypeVar("Result")
_barriers = itertools.count()
_FOR_EVER = 30 * 24 * 3600 * 1000
"""Milliseconds: longer than any run."""
_GOODBYE = 30
"""Seconds that a process that ends waits for the others to end too."""
_SILENCE = 60.0
"""Seconds after which a process that says nothing counts as dead."""
ENDED = "ended"
_abort_handler: Any = None
"""Held for as long as the C library may call it."""
_DEAD = (
    "A process of this run has died or cannot be reached, so the others stop. Its own output says why. What was finished is "
    "kept: the same command goes on from there."
)


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
        jax.distributed.initialize(
            given.coordinator,
            given.processes,
            given.process,
            heartbeat_timeout_seconds=int(3 * _SILENCE),
            shutdown_timeout_seconds=_GOODBYE,
        )
    except (RuntimeError, ValueError) as error:
        raise InfluenceError(
            f"The processes of this run did not find each other ({error}). Check that every one was started with the "
            "same coordinator address and number of processes, each with its own number, and that the port is free."
        ) from error
    client = getattr(_distributed_state(), "client", None)
    if client is not None:
        _watch_partners(client, jax.process_index(), jax.process_count())


def _distributed_state() -> Any:
    """JAX's own record of the processes that met; None where this version keeps it elsewhere."""
    from jax._src import distributed

    return getattr(distributed, "global_state", None)


def _watch_partners(client: Any, process: int, processes: int) -> None:
    """Have a thread end this process, with a sentence, when another one has been silent for _SILENCE seconds.

    Every process writes a growing number where the coordinator keeps what processes share, and the word ENDED when it ends
    well. JAX has such a watch too, which waits longer and aborts.
    """
    stopped = threading.Event()

    def ended() -> None:
        stopped.set()
        with contextlib.suppress(Exception):
            client.key_value_set(f"alive/{process}", ENDED, allow_overwrite=True)

    def watch() -> None:
        heard = {other: ("", time.monotonic()) for other in range(processes) if other != process}
        for beat in itertools.count():
            if stopped.wait(_SILENCE / 10):
                return
            with contextlib.suppress(Exception):  # the coordinator does not answer, or a number is not there yet
                client.key_value_set(f"alive/{process}", str(beat), allow_overwrite=True)
                for other, (before, _) in heard.items():
                    now = client.key_value_try_get(f"alive/{other}")
                    if now != before:
                        heard[other] = (now, time.monotonic())
            silent = [
                other
                for other, (said, since) in heard.items()
                if said != ENDED and time.monotonic() - since > _SILENCE and not stopped.is_set()
            ]
            if silent:
                print(f"error: {_DEAD}", file=sys.stderr, flush=True)
                leave_at_once(PartnerError.status, f"process {silent[0]} of the run has died or cannot be reached")

    threading.Thread(target=watch, name="partners", daemon=True).start()
    atexit.register(ended)
    _end_where_jax_aborts()


def _end_where_jax_aborts() -> None:
    """Where the coordinator dies, JAX aborts the other processes at once: let that end in a sentence and a status too.

    A handler of Python's own would wait for the main thread, which never comes back from an abort; one of the C library
    runs in the thread that aborts.
    """
    global _abort_handler
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p

    def aborted(_: int) -> None:
        print(f"error: JAX has ended this process, as its words above say. {_DEAD}", file=sys.stderr, flush=True)
        leave_at_once(PartnerError.status, "JAX has aborted: another process of the run has died or cannot be reached")

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


def lost_partner(error: BaseException) -> InfluenceError | None:
    """Return what to say in place of an error that is a dead partner's; None for any other.

    A collective notices first, as a broken connection or one that timed out.
    """
    if jax.process_count() == 1 or not isinstance(error, RuntimeError):
        return None
    signs = ("gloo", "connection closed", "connection reset", "coordination", "heartbeat", "unavailable:", "aborted:")
    said = str(error).lower()
    return PartnerError(_DEAD) if any(sign in said for sign in signs) else None


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


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process among those that a scheduler started together; 0 for one on its own."""
    if not _launched(environment):
        return 0
    names = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
    return next((_whole(environment[name]) or 0 for name in names if environment.get(name)), 0)


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
    return gathered(str(int(flag)))[0] == "1"


def gathered(text: str) -> list[str]:
    """What every process says, in the order of their numbers, known to all of them."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = _of_all(np.array([len(content)], np.int32))[:, 0]
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = content
    return [row[:length].tobytes().decode() for row, length in zip(_of_all(padded), lengths.tolist(), strict=True)]


def _of_all(row: np.ndarray) -> np.ndarray:
    """A row of every process, in the order of their numbers, whatever the order in which JAX lists their devices."""
    mesh = all_devices()
    mine = split(np.broadcast_to(row, (jax.local_device_count(), *row.shape)), mesh)
    whole = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))(mine)
    owners = [device.process_index for device in mesh.devices]
    return np.asarray(whole.addressable_data(0))[[owners.index(process) for process in range(jax.process_count())]]


def in_every(said: str, otherwise: str) -> str:
    """Check that every process says the same, and return it.

    Args:
        said: What this one says.
        otherwise: The beginning of the message where they differ.

    Raises:
        InfluenceError: They differ; every process raises, with what each of them said.
    """
    heard = gathered(said)
    if len(set(heard)) > 1:
        listed = "".join(f"\n  process {number}: {each}" for number, each in enumerate(heard))
        raise InfluenceError(f"{otherwise}:{listed}\nStart all of them from the same files, on machines of one kind.")
    return said


def smallest(number: int) -> int:
    """The smallest of the processes' numbers, in all of them."""
    return min(int(each) for each in gathered(str(number)))


def summed(count: int) -> int:
    """The sum of a number over the processes."""
    return sum(int(each) for each in gathered(str(count)))


def part_of(items: Int[np.ndarray, " count"]) -> Int[np.ndarray, " part"]:
    """This process's part of a list that every process holds alike: one run of it, as long as any other's, ± 1."""
    return np.array_split(items, jax.process_count())[jax.process_index()]


PIECE = 2**26
"""Bytes that are sent together, through the memory of the devices."""
_FAILED = -1


def from_first(action: Callable[[], bytes]) -> bytes:
    """Return in every process the bytes that `action` returns in the first; the others do not run it.

    All processes of a run call this at the same place.

    Raises:
        InfluenceError: It failed there. In the first process, its own error.
    """
    if jax.process_count() == 1:
        return action()
    content, failure = b"", None
    if is_first():
        try:
            content = action()
        except Exception as error:
            failure = error
    barrier("message")
    size = _size(_FAILED if failure is not None else len(content))
    if failure is not None:
        raise failure
    if size == _FAILED:
        raise InfluenceError("The first process of the run has given up; its own message says why.")
    padded = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return b"".join(_sent(padded[start : start + PIECE]).tobytes() for start in range(0, size, PIECE))


def _size(size: int) -> int:
    """Send a number of any size as two of 32 bits."""
    high, low = _sent(np.array(divmod(size, 2**30), np.int32)).tolist()
    return high * 2**30 + low


def _sent(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
