"""Run by `test_processes.py` as each of two processes that differ: in what they were started for, or in how they end."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from influence_ssl_jax.cli import main as command_line
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.parallel import (
    Distributed,
    all_devices,
    barrier,
    gather,
    min_over_processes,
    processes,
    require_equal,
    start,
)
from influence_ssl_jax.parallel.mesh import split


def other(folder: Path, process: int) -> None:
    """Processes with other images and draws, and with other fits; what they say goes to standard error."""
    from influence_ssl_jax.store import ScoreStore  # takes longer to import than the processes that end take in all

    @contextlib.contextmanager
    def told():
        try:
            yield
        except InfluenceError as error:
            print(error, file=sys.stderr)

    said = ["größer 0", "g1"][process]
    print(f"smallest {min_over_processes(7 + 5 * process)} gathered {gather(said)}", file=sys.stderr)
    with told():
        ScoreStore.open(folder, {"draws": 4 - 2 * process}, 100 - 10 * process)
    with told():
        require_equal(f"fit {process}", "The processes of this run have different fitted curvatures")


def dies(waits: str, killed: int, process: int) -> None:
    """One process is killed; the other waits for it, in one way or in another, or is at its own work."""
    barrier("both are here")
    if process == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    if waits == "barrier":
        barrier("nobody comes")
    rows = split(jnp.ones((1, 4)), all_devices())
    while waits == "collective":
        jax.block_until_ready(jax.jit(jnp.sum)(rows))
    while True:
        time.sleep(0.1)


def main(what: str, given: str, coordinator: str, process: int) -> None:
    """One of them, as the command line runs it."""
    processes._SILENCE = 5.0

    def execute(*_: object) -> None:
        start(Distributed(coordinator, 2, process))
        other(Path(given), process) if what == "other" else dies(what, int(given), process)

    command_line._execute = execute
    sys.argv = ["influence-ssl", "score"]
    command_line.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
