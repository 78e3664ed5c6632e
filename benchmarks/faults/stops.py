"""Send SIGTERM, Ctrl-C and SIGHUP to runs at random moments, until each run completes."""

import os
import shutil
import signal
import time

from benchmarks.faults.processes import Action, command, ended, started
from benchmarks.faults.rig import Rig, lost_or_repeated, table
from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.signals import orderly


def stops(rig: Rig, fresh: str, seconds: float) -> int:
    """Stop runs of scores by signals, and check how they end.

    Each run must end with the signal's status, a message, and a line in its log.
    """
    wrong = total = runs = 0
    while total < rig.config.stops:
        out, runs = f"stopped{runs}", runs + 1
        times, orderly_ones = _stopped_until_through(rig, rig.score(out), out, seconds)
        total += times
        wrong += lost_or_repeated(rig.root / out, rig.config.images)
        same = table(rig.root / out) == fresh
        rig.note(
            f"stopped {times} times, then through", same and times == orderly_ones, stops=times, orderly=orderly_ones
        )
        shutil.rmtree(rig.root / out)
    return wrong


def _stopped_until_through(rig: Rig, arguments: list[str], out: str, seconds: float) -> tuple[int, int]:
    """Stop a run until it completes; count the stops and correct ends."""
    well = 0
    for times in range(rig.config.at_most + 1):
        process = started(_in_order(command(arguments)), rig.root / "said.txt")
        if times == rig.config.at_most:
            assert ended(process) == 0, (rig.root / "said.txt").read_text()
            return times, well
        number = rig.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        deadline = time.monotonic() + rig.random.uniform(0.3, 0.9) * seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                assert status == 0, (rig.root / "said.txt").read_text()
                return times, well
            time.sleep(0.002)
        os.kill(process, number)
        began = time.monotonic()
        status = ended(process)
        said, log = (rig.root / "said.txt").read_text(), json_lines(rig.root / out / "log.jsonl")
        if status == 0:  # it was through before it heard
            return times, well
        word = "Finished work is kept" in said or "stopping, within" in said
        logged = not log or log[-1]["event"] in ("stopped", "finished")
        well += status == 128 + number and word and logged and "Traceback" not in said and time.monotonic() - began < 15
    raise AssertionError("unreachable")


def _in_order(action: Action) -> Action:
    """Return an action that handles signals as the command does."""

    def handled() -> int | None:
        with orderly():
            return action()

    return handled
