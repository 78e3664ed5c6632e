"""The command line in processes of its own, which may be killed."""

import io
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from influence_ssl_jax.cli import main
from influence_ssl_jax.errors import InfluenceError

Action = Callable[[], int | None]
LONGEST = 600
"""Seconds after which a process that hangs is ended by its own alarm."""


def started(action: Action, said: Path) -> int:
    """Start a new process for `action`, and return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    signal.alarm(LONGEST)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            status = action() or 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
    os._exit(status)


def command(arguments: list[str], limit: int | None = None) -> Action:
    """Return the command line as an action, with an optional file limit."""

    def action() -> int:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        plain = Console(
            width=200, force_terminal=False, file=io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), write_through=True)
        )
        return main.run(arguments, plain, plain)

    return action


def ended(process: int) -> int:
    """Wait for a process, and return its exit status."""
    status = os.waitpid(process, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def told(action: Callable[[], None]) -> Action:
    """Return an action that prints documented errors as the command does."""

    def telling() -> int:
        try:
            action()
        except InfluenceError as error:
            print(f"error: {error}", flush=True)
            return main.WRONG
        return 0

    return telling


def killed_until_through(action: Action, said: Path, draw: random.Random, seconds: float, at_most: int) -> int:
    """Start an action again and again, killing it at random moments; the number of kills until it came through."""
    for kills in range(at_most + 1):
        process = started(action, said)
        if kills == at_most:
            assert ended(process) == 0, said.read_text()
            return kills
        deadline = time.monotonic() + draw.uniform(0.1, 0.9) * seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                assert status == 0, said.read_text()
                return kills
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        ended(process)
    raise AssertionError("unreachable")
