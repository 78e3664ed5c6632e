"""Join several processes to one run.

Each has its own devices and its own part of the data.
"""

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

from influence_ssl_jax.configuration import COUNT, check_numbers
from influence_ssl_jax.errors import InfluenceError, PartnerError
from influence_ssl_jax.parallel.mesh import all_devices, split
from influence_ssl_jax.signals import leave_at_once

Result = TypeVar("Result")
_barriers = itertools.count()
_FOR_EVER = 30 * 24 * 3600 * 1000
"""Milliseconds: longer than any run."""
_GOODBYE = 30
"""Seconds that a process waits at its end for the other processes to end."""
_SILENCE = 60.0
"""Seconds of silence after which a process is taken to be dead."""
ENDED = "ended"
"""What a process writes for the others when it ends without an error."""
_abort_handler: Any = None
"""The handler of aborts; it must live as long as the C library may call it."""
_DEAD = (
    "A process of this run has died or cannot be reached, so the others stop. Its own output says why. Finished work is "
    "kept; repeat the command to continue."
)
_GIVEN_UP = "The first process of the run has stopped with an error; its own output says why."


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The place of this process in a run of several processes.

    Under SLURM, Open MPI and on a TPU pod nothing needs to be set. Settings that are None are read from the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Attributes:
        coordinator: Address of the first process, host:port.
        processes: Number of processes.
        process: Number of this process, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no process has."""
        check_numbers(self, processes=COUNT, process=(0, COUNT[1]))


def start(settings: Distributed, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if any, before the first array is made.

    Raises:
        InfluenceError: If some settings are missing, or the others do not answer.
    """
    if jax.distributed.is_initialized():
        return
    given = resolve(settings, environment)
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
            f"The processes of this run cannot connect ({error}). Check that all were started with the same coordinator "
            "address and number of processes, each with its own number, and that the port is free."
        ) from error
    client = getattr(_distributed_state(), "client", None)
    if client is not None:
        _watch_partners(client, jax.process_index(), jax.process_count())


def _distributed_state() -> Any:
    """Return JAX's record of the connected processes, or None.

    It is None if this version of JAX has no record.
    """
    from jax._src import distributed

    return getattr(distributed, "global_state", None)


def _watch_partners(client: Any, process: int, processes: int) -> None:
    """Start a thread that ends this process if another is silent.

    A process is silent if nothing comes from it for `_SILENCE` seconds. Every process writes a growing number to the
    store of the coordinator, and `ENDED` when it ends without an error. JAX has a similar watch, which waits longer and
    aborts without a message.
    """
    stopped = threading.Event()

    def say_goodbye() -> None:
        stopped.set()
        with contextlib.suppress(Exception):
            client.key_value_set(f"alive/{process}", ENDED, allow_overwrite=True)

    def watch() -> None:
        heard = {other: ("", time.monotonic()) for other in range(processes) if other != process}
        for beat in itertools.count():
            if stopped.wait(_SILENCE / 10):
                return
            with contextlib.suppress(Exception):  # the coordinator does not answer, or a number is not written yet
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
    atexit.register(say_goodbye)
    _handle_abort()


def _handle_abort() -> None:
    """End with a message and exit status if JAX aborts this process.

    JAX aborts the other processes at once if the coordinator dies. A signal handler of Python would wait for the main
    thread, which does not return from an abort; a handler of the C library runs in the thread that aborts.
    """
    global _abort_handler
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p

    def leave(_: int) -> None:
        print(f"error: JAX has aborted this process; its message is above. {_DEAD}", file=sys.stderr, flush=True)
        leave_at_once(PartnerError.status, "JAX has aborted: another process of the run has died or cannot be reached")

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(leave)
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


def partner_error(error: BaseException) -> InfluenceError | None:
    """Return the error that another process died, if that caused `error`.

    It is None otherwise. A collective operation notices a dead process first: its connection breaks or times out.
    """
    if jax.process_count() == 1 or not isinstance(error, RuntimeError):
        return None
    signs = ("gloo", "connection closed", "connection reset", "coordination", "heartbeat", "unavailable:", "aborted:")
    said = str(error).lower()
    return PartnerError(_DEAD) if any(sign in said for sign in signs) else None


def resolve(settings: Distributed, environment: Mapping[str, str]) -> Distributed | None:
    """Return the run to join; None for a process on its own.

    All settings are None if a scheduler started the processes, because JAX asks the scheduler then.

    Raises:
        InfluenceError: If some settings are given and others are missing.

    Examples:
        >>> from influence_ssl_jax.parallel import Distributed
        >>> from influence_ssl_jax.parallel.processes import resolve
        >>> resolve(Distributed("host:1234"), {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
        Distributed(coordinator='host:1234', processes=2, process=1)
    """
    count, number = environment.get("JAX_NUM_PROCESSES"), environment.get("JAX_PROCESS_ID")
    setting = Distributed(
        settings.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        settings.processes if settings.processes is not None else _whole(count),
        settings.process if settings.process is not None else _whole(number),
    )
    values = dataclasses.astuple(setting)
    if all(value is not None for value in values):
        return setting
    if any(value is not None for value in values) and not _is_launched(environment):
        missing = [name for name, value in dataclasses.asdict(setting).items() if value is None]
        raise InfluenceError(
            f"A run of several processes needs coordinator, processes and process; missing: {', '.join(missing)}. Set "
            "them by --distributed.… or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        )
    return setting if _is_launched(environment) else None


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Test whether a scheduler known to JAX started several processes."""
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several = any((_whole(environment.get(name)) or 1) > 1 for name in sizes)
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's number as its scheduler counts, 0 if alone.

    Examples:
        >>> from influence_ssl_jax.parallel import rank
        >>> rank({}), rank({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"})
        (0, 3)
    """
    if not _is_launched(environment):
        return 0
    names = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
    return next((_whole(environment[name]) or 0 for name in names if environment.get(name)), 0)


def _whole(text: str | None) -> int | None:
    """Read a whole number; None if there is no text."""
    return int(text) if text else None


def is_first() -> bool:
    """Test whether this process is the first.

    It prints and writes for all.
    """
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have called this, without a time limit.

    If a process dies, all end. It uses the coordination service, because a collective operation would time out.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"{name} {next(_barriers)}", timeout_ms=_FOR_EVER)


def first_only(action: Callable[[], Result]) -> Result | None:
    """Run `action` in the first process; the others wait and return None.

    Raises:
        InfluenceError: If it failed. The first process raises the error itself.
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
    succeeded = agree_with_first(failure is None)
    if failure is not None:
        raise failure
    if not succeeded:
        raise InfluenceError(_GIVEN_UP)
    return result


def agree_with_first(flag: bool) -> bool:
    """Return in all processes the flag of the first one."""
    return gather(str(int(flag)))[0] == "1"


def gather(text: str) -> list[str]:
    """Return the texts of all processes, by number, in each process.

    Examples:
        >>> from influence_ssl_jax.parallel import gather
        >>> gather("ready")  # one process
        ['ready']
    """
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = _gather_rows(np.array([len(content)], np.int32))[:, 0]
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = content
    return [row[:length].tobytes().decode() for row, length in zip(_gather_rows(padded), lengths.tolist(), strict=True)]


def _gather_rows(row: np.ndarray) -> np.ndarray:
    """Return one row of every process, in the order of their numbers."""
    mesh = all_devices()
    mine = split(np.broadcast_to(row, (jax.local_device_count(), *row.shape)), mesh)
    whole = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))(mine)
    owners = [device.process_index for device in mesh.devices]
    return np.asarray(whole.addressable_data(0))[[owners.index(process) for process in range(jax.process_count())]]


def require_equal(said: str, otherwise: str) -> str:
    """Check that all processes have the same text, and return it.

    Args:
        said: The text of this process.
        otherwise: The beginning of the error message.

    Raises:
        InfluenceError: If they differ. Every process raises it, and the message lists all texts.
    """
    heard = gather(said)
    if len(set(heard)) > 1:
        listed = "".join(f"\n  process {number}: {each}" for number, each in enumerate(heard))
        raise InfluenceError(f"{otherwise}:{listed}\nStart all processes from the same files, on machines of one kind.")
    return said


def min_over_processes(number: int) -> int:
    """Return in all processes the smallest of their numbers."""
    return min(int(each) for each in gather(str(number)))


def sum_over_processes(count: int) -> int:
    """Return in all processes the sum of their numbers."""
    return sum(int(each) for each in gather(str(count)))


def own_part(items: Int[np.ndarray, " count"]) -> Int[np.ndarray, " part"]:
    """Return the part of this process of a list that all have.

    The parts are consecutive, and their sizes differ by at most 1.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.parallel import own_part
        >>> own_part(np.arange(3)).tolist()  # one process
        [0, 1, 2]
    """
    return np.array_split(items, jax.process_count())[jax.process_index()]


PIECE = 2**26
"""Number of bytes that are sent at a time, through the memory of the devices."""
_FAILED = -1


def broadcast_from_first(action: Callable[[], bytes]) -> bytes:
    """Run `action` in the first process; return its bytes in all.

    All processes of a run must call this together.

    Raises:
        InfluenceError: If it failed. The first process raises the error itself.

    Examples:
        >>> from influence_ssl_jax.parallel import broadcast_from_first
        >>> broadcast_from_first(lambda: b"a list of files")  # one process
        b'a list of files'
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
    size = _broadcast_size(_FAILED if failure is not None else len(content))
    if failure is not None:
        raise failure
    if size == _FAILED:
        raise InfluenceError(_GIVEN_UP)
    padded = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return b"".join(_broadcast(padded[start : start + PIECE]).tobytes() for start in range(0, size, PIECE))


def _broadcast_size(size: int) -> int:
    """Broadcast the first process's number as two numbers of 32 bits."""
    high, low = _broadcast(np.array(divmod(size, 2**30), np.int32)).tolist()
    return high * 2**30 + low


def _broadcast(array: np.ndarray) -> np.ndarray:
    """Return in all processes the array of the first one."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
