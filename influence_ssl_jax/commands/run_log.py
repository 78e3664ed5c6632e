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

BEAT = 5.0
"""Seconds between heartbeats."""


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
        self._beaten = 0.0

    def event(self, name: str, **facts: Plain) -> None:
        """Add a line; `time` is in seconds since 1970."""
        line = json.dumps({"time": round(time.time(), 3), "event": name, **self._who, **facts})
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def beat(self, doing: str, **facts: Plain) -> None:
        """Say that the process is alive; most calls do nothing, so it can be called often."""
        now = time.monotonic()
        if now - self._beaten < BEAT:
            return
        self._beaten = now
        unfinished = self._heart.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"time": round(time.time(), 3), "doing": doing, **self._who, **facts}))
        unfinished.replace(self._heart)


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


@contextlib.contextmanager
def bar(out: Console, doing: str, pace: Pace) -> Iterator[Progress]:
    """A bar of examples with speed and time left; `progress.update(progress.task_ids[0], …)` moves it."""
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.0f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, refresh_per_second=2) as progress:
        progress.add_task("", total=pace.total, completed=pace.done, speed=0.0)
        yield progress
