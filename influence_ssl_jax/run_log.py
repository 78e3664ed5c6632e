"""Record a long run: structured log, heartbeat, events of progress."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import jax

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import InfluenceError, disk_of
from influence_ssl_jax.progress import Advanced, Ended, Note, Progress, Started
from influence_ssl_jax.signals import Terminated, last_word

BEAT = 5.0
"""Seconds between heartbeats."""


def json_lines(file: Path) -> list[dict]:
    """Read a JSON-lines file's objects, without incomplete and damaged lines."""
    objects = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(line)
            objects += [read] if isinstance(read, dict) else []
    return objects


def _last_line_is_incomplete(file: Path) -> bool:
    """Test whether the last line of a file is incomplete.

    This happens if the process was stopped while it wrote the line.
    """
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


class RunLog:
    """A log `log.jsonl` and a heartbeat `heartbeat.json` of a run.

    Every run appends to `log.jsonl`, one JSON object on each line. `heartbeat.json` is replaced every few seconds, by a
    thread that works while the log is entered (`with`). A process other than the first has files of its own,
    `log-1.jsonl` and so on.

    In `heartbeat.json`, `time` is the time of the last heartbeat: if it is old, the process has ended. `moved` is the
    time of the last progress: if it is old and `time` is recent, the work named in `doing` is slow or does not end.
    """

    def __init__(self, folder: Path) -> None:
        number = jax.process_index()
        suffix = f"-{number}" if number else ""
        self._folder = folder
        self._log, self._heart = folder / f"log{suffix}.jsonl", folder / f"heartbeat{suffix}.json"
        self._who = {"host": socket.gethostname(), "pid": os.getpid(), "process": number}
        self._doing, self._facts, self._moved, self._beaten = "", {}, time.time(), 0.0
        self._began, self._end, self._writing = time.time(), threading.Event(), threading.Lock()
        self._open = contextlib.ExitStack()
        if _last_line_is_incomplete(self._log):
            self._write("")  # ends the incomplete line, so that the next one is separate

    def __enter__(self) -> "RunLog":
        self._end.clear()
        thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(self._end.set)
        self._open.enter_context(last_word(self._record_stop))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._open.close()
        if error is None:
            self.beat("finished", **self._facts)
            return
        with contextlib.suppress(Exception):  # the error of the run is more important than one of this record
            self._record_stop(_describe_stop(error))

    def _record_stop(self, reason: str) -> None:
        """Record that the run stopped before its end."""
        self.event("stopped", reason=reason)
        self._doing = ""
        self.beat(f"stopped: {reason}", **self._facts)

    def _keep_beating(self) -> None:
        """Write a heartbeat every few seconds."""
        while not self._end.wait(BEAT):
            if self._doing:
                with contextlib.suppress(OSError, InfluenceError):  # if the disk is full, writing results fails too
                    self._heartbeat()

    def event(self, name: str, **facts: Plain) -> None:
        """Add a line to the log, with `time` in seconds since 1970."""
        self._write(json.dumps({"time": round(time.time(), 3), "event": name, **self._who, **facts}))

    def events(self, name: str) -> list[dict]:
        """Read the lines with this name, of this and earlier runs."""
        return [line for line in json_lines(self._log) if line.get("event") == name]

    def beat(self, doing: str, **facts: Plain) -> None:
        """Record that the process makes progress.

        While `doing` is the same, the file is written only once in a few seconds, so this can be called often.
        """
        self._facts, self._moved = facts, time.time()
        if doing == self._doing and time.monotonic() - self._beaten < BEAT:
            return
        self._doing = doing
        self._heartbeat()

    def _heartbeat(self) -> None:
        """Write the heartbeat."""
        with self._writing, disk_of(self._heart):
            self._beaten = time.monotonic()
            state = {"time": round(time.time(), 3), "moved": round(self._moved, 3), "doing": self._doing}
            unfinished = self._heart.with_suffix(".tmp")
            unfinished.write_text(json.dumps({**state, **self._who, **self._facts}), encoding="utf-8")
            unfinished.replace(self._heart)

    def of_others(self) -> int:
        """Count the examples that the run's other processes have done.

        Their heartbeats tell the numbers.
        """
        total = 0
        for number in range(jax.process_count()):
            if number != jax.process_index():
                name = f"heartbeat-{number}.json" if number else "heartbeat.json"
                state = next(iter(json_lines(self._folder / name)), {})
                recent = isinstance(state.get("moved"), float) and state["moved"] >= self._began - BEAT
                total += state["advanced"] if recent and isinstance(state.get("advanced"), int) else 0
        return total

    def _write(self, line: str) -> None:
        """Append a line to the log."""
        with disk_of(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _describe_stop(error: BaseException) -> str:
    """Describe in a few words why a run stopped."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) if isinstance(error, Terminated) else "interrupted (Ctrl-C)"
    return f"{type(error).__name__}: {error}"[:500]


class Pace:
    """The speed of a run in examples per second.

    It is measured from the end of the first batch, which compiles, and includes the time between batches.

    Attributes:
        total: Number of examples of the whole work.
        done: Number of examples that this process has done, in this run and before it.
        advanced: Number of examples that this process has done in this run.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.advanced, self._first, self._counted = total, done, 0, 0.0, 0

    def advance(self, examples: int) -> None:
        """Count `examples` more as done."""
        self.done += examples
        self.advanced += examples
        if not self._first:
            self._first = time.monotonic()
        else:
            self._counted += examples

    @property
    def speed(self) -> float:
        """Examples per second; zero until two batches are done."""
        return self._counted / max(time.monotonic() - self._first, 1e-9) if self._counted else 0.0

    def together(self, others: int) -> float:
        """Return the examples per second of all processes.

        Args:
            others: Number of examples that the other processes have done in this run.
        """
        return self.speed * (self.advanced + others) / self.advanced if self.advanced else 0.0

    def facts(self) -> dict[str, float | int | None]:
        """Return the counts, the speed and the seconds left, for the log."""
        left = (self.total - self.done) / self.speed if self.speed else None
        return {
            "done": self.done,
            "advanced": self.advanced,
            "total": self.total,
            "examples_per_second": round(self.speed, 2),
            "seconds_left": None if left is None else round(left, 1),
        }


class Watch:
    """The progress of a stage, as events and heartbeats.

    There is an event for every batch, and a heartbeat every few seconds.
    """

    def __init__(self, progress: Progress, log: RunLog, doing: str, pace: Pace, others: Callable[[], int]) -> None:
        self.pace, self._progress, self._log, self._doing = pace, progress, log, doing
        self._ask, self._others, self._asked = others, 0, 0.0

    def advance(self, examples: int, **facts: float | int) -> None:
        """Report `examples` more as done, with further numbers."""
        self.pace.advance(examples)
        if time.monotonic() - self._asked > BEAT:  # reported progress includes the work of other processes
            self._others, self._asked = self._ask(), time.monotonic()
        rate = self.pace.together(self._others) or None
        self._progress(Advanced(self._doing, self.pace.done + self._others, self.pace.total, rate, facts))
        self._log.beat(self._doing, **self.pace.facts(), **facts)

    def pause(self, doing: str) -> None:
        """Record other work between two batches."""
        self._log.beat(doing, **self.pace.facts())

    def say(self, line: str) -> None:
        """Report a fact in a sentence."""
        self._progress(Note(line))


@contextlib.contextmanager
def watch_stage(
    progress: Progress, log: RunLog, doing: str, pace: Pace, others: Callable[[], int] = lambda: 0
) -> Iterator[Watch]:
    """Report a stage that counts images around a block, with a heartbeat.

    Args:
        progress: The function that receives the events.
        log: The log with the heartbeat.
        doing: The stage, in words.
        pace: The counts and the speed of the stage.
        others: Returns the number of examples that other processes have done in this run.
    """
    progress(Started(doing, pace.done, pace.total))
    try:
        yield Watch(progress, log, doing, pace, others)
    finally:
        progress(Ended(doing))
