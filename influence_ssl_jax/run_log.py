"""What a long run tells while it runs: a structured log, a heartbeat, a bar with speed and time left."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import disk_of

BEAT = 5.0
"""Seconds between heartbeats."""


def json_lines(file: Path) -> list[dict]:
    """The objects of a file of one JSON object a line; a line that a kill cut short is none."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _torn(file: Path) -> bool:
    """Whether a kill cut the last line short."""
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open("rb") as held:
        held.seek(-1, os.SEEK_END)
        return held.read(1) != b"\n"


class RunLog:
    """`log.jsonl`, one JSON object a line, appended by every run, and `heartbeat.json`, replaced every few seconds.

    A process other than the first has files of its own, `log-1.jsonl` and so on. A heartbeat that has grown old says
    that the process is gone or stuck, and what it was doing.
    """

    def __init__(self, folder: Path) -> None:
        number = jax.process_index()
        suffix = f"-{number}" if number else ""
        self._log, self._heart = folder / f"log{suffix}.jsonl", folder / f"heartbeat{suffix}.json"
        self._who = {"host": socket.gethostname(), "pid": os.getpid(), "process": number}
        self._doing, self._beaten = "", 0.0
        if _torn(self._log):
            self._write("")  # ends that line, so that none is glued to it

    def event(self, name: str, **facts: Plain) -> None:
        """Add a line; `time` is in seconds since 1970."""
        self._write(json.dumps({"time": round(time.time(), 3), "event": name, **self._who, **facts}))

    def events(self, name: str) -> list[dict]:
        """The lines of that name, of this run and of those before it."""
        return [line for line in json_lines(self._log) if line.get("event") == name]

    def beat(self, doing: str, **facts: Plain) -> None:
        """Say that the process is alive; while it does the same most calls do nothing, so it can be called often."""
        now = time.monotonic()
        if doing == self._doing and now - self._beaten < BEAT:
            return
        self._doing, self._beaten = doing, now
        unfinished = self._heart.with_suffix(".tmp")
        with disk_of(self._heart):
            unfinished.write_text(json.dumps({"time": round(time.time(), 3), "doing": doing, **self._who, **facts}))
            unfinished.replace(self._heart)

    def _write(self, line: str) -> None:
        with disk_of(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Pace:
    """Examples per second since the first batch, which compiles."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._first, self._counted = total, done, 0.0, 0

    def advance(self, examples: int) -> None:
        """So many more are done."""
        self.done += examples
        if not self._first:
            self._first = time.monotonic()
        else:
            self._counted += examples

    @property
    def speed(self) -> float:
        """Examples per second; zero until there are two batches."""
        return self._counted / max(time.monotonic() - self._first, 1e-9) if self._counted else 0.0

    def facts(self) -> dict[str, float | int | None]:
        """For the log: done, total, examples per second, seconds left."""
        left = (self.total - self.done) / self.speed if self.speed else None
        return {
            "done": self.done,
            "total": self.total,
            "examples_per_second": round(self.speed, 2),
            "seconds_left": None if left is None else round(left, 1),
        }


class Watch:
    """Work under way, seen from outside: every batch moves the bar and, now and then, the heartbeat."""

    def __init__(self, progress: Progress, log: RunLog, doing: str, pace: Pace) -> None:
        self.pace, self._progress, self._log, self._doing = pace, progress, log, doing
        self._task = progress.add_task(doing, total=pace.total, completed=pace.done, speed=0.0)

    def advance(self, examples: int, **facts: float | int) -> None:
        """So many more are done; further numbers stand beside the bar and in the heartbeat."""
        self.pace.advance(examples)
        shown = " · ".join([self._doing, *(f"{name} {value:.4g}" for name, value in facts.items())])
        self._progress.update(self._task, description=shown, completed=self.pace.done, speed=self.pace.speed)
        self._log.beat(self._doing, **self.pace.facts(), **facts)

    def pause(self, doing: str) -> None:
        """Something else is being done between two batches."""
        self._log.beat(doing, **self.pace.facts())

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, highlight=False)


@contextlib.contextmanager
def watched(out: Console, log: RunLog, doing: str, pace: Pace) -> Iterator[Watch]:
    """A bar of examples with speed and time left, beside a heartbeat, while the block works."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.4g} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, refresh_per_second=2) as progress:
        yield Watch(progress, log, doing, pace)
