"""Record what a long run does while it runs: a structured log, a heartbeat, events of progress."""

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
    """The objects of a file of one JSON object a line; what a kill cut short or damage made something else is none."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(line)
            found += [read] if isinstance(read, dict) else []
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

    A process other than the first has files of its own, `log-1.jsonl` and so on. While the log is entered (`with`), a
    thread beats whatever the process is busy with. In `heartbeat.json` `time` is when it last beat: an old one belongs to
    a process that is gone. `moved` is when it last came further: an old one beside a fresh `time` belongs to one that
    takes long, or is stuck, in what `doing` names.
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
        if _torn(self._log):
            self._write("")  # ends that line, so that none is glued to it

    def __enter__(self) -> "RunLog":
        self._end.clear()
        thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(self._end.set)
        self._open.enter_context(last_word(self._stopped))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._open.close()
        if error is None:
            self.beat("finished", **self._facts)
            return
        with contextlib.suppress(Exception):  # the error itself is what counts
            self._stopped(_word(error))

    def _stopped(self, reason: str) -> None:
        """The last line of a run that does not come through."""
        self.event("stopped", reason=reason)
        self._doing = ""
        self.beat(f"stopped: {reason}", **self._facts)

    def _keep_beating(self) -> None:
        while not self._end.wait(BEAT):
            if self._doing:
                with contextlib.suppress(OSError, InfluenceError):  # a full disk stops the run where it writes results
                    self._heartbeat()

    def event(self, name: str, **facts: Plain) -> None:
        """Add a line; `time` is in seconds since 1970."""
        self._write(json.dumps({"time": round(time.time(), 3), "event": name, **self._who, **facts}))

    def events(self, name: str) -> list[dict]:
        """The lines of that name, of this run and of those before it."""
        return [line for line in json_lines(self._log) if line.get("event") == name]

    def beat(self, doing: str, **facts: Plain) -> None:
        """Say that the process is alive; while it does the same most calls do nothing, so it can be called often."""
        self._facts, self._moved = facts, time.time()
        if doing == self._doing and time.monotonic() - self._beaten < BEAT:
            return
        self._doing = doing
        self._heartbeat()

    def _heartbeat(self) -> None:
        with self._writing, disk_of(self._heart):
            self._beaten = time.monotonic()
            said = {"time": round(time.time(), 3), "moved": round(self._moved, 3), "doing": self._doing}
            unfinished = self._heart.with_suffix(".tmp")
            unfinished.write_text(json.dumps({**said, **self._who, **self._facts}), encoding="utf-8")
            unfinished.replace(self._heart)

    def of_others(self) -> int:
        """How many examples the other processes of this run have done, by their heartbeats."""
        total = 0
        for number in range(jax.process_count()):
            if number != jax.process_index():
                name = f"heartbeat-{number}.json" if number else "heartbeat.json"
                said = next(iter(json_lines(self._folder / name)), {})
                fresh = isinstance(said.get("moved"), float) and said["moved"] >= self._began - BEAT
                total += said["advanced"] if fresh and isinstance(said.get("advanced"), int) else 0
        return total

    def _write(self, line: str) -> None:
        with disk_of(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _word(error: BaseException) -> str:
    """Why a run stopped, in a few words."""
    if isinstance(error, KeyboardInterrupt):
        return "terminated (SIGTERM)" if isinstance(error, Terminated) else "interrupted (Ctrl-C)"
    return f"{type(error).__name__}: {error}"[:500]


class Pace:
    """Examples per second since the first batch, which compiles; what comes between batches counts.

    Attributes:
        total: Examples of the whole work.
        done: Those that are done, before this run or in it, by this process.
        advanced: Those of them that were done in this run.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.advanced, self._first, self._counted = total, done, 0, 0.0, 0

    def advance(self, examples: int) -> None:
        """So many more are done."""
        self.done += examples
        self.advanced += examples
        if not self._first:
            self._first = time.monotonic()
        else:
            self._counted += examples

    @property
    def speed(self) -> float:
        """Examples per second; zero until there are two batches."""
        return self._counted / max(time.monotonic() - self._first, 1e-9) if self._counted else 0.0

    def together(self, others: int) -> float:
        """Examples per second of this process and the others, which have done `others` examples in this run."""
        return self.speed * (self.advanced + others) / self.advanced if self.advanced else 0.0

    def facts(self) -> dict[str, float | int | None]:
        """For the log: done, total, examples per second, seconds left."""
        left = (self.total - self.done) / self.speed if self.speed else None
        return {
            "done": self.done,
            "advanced": self.advanced,
            "total": self.total,
            "examples_per_second": round(self.speed, 2),
            "seconds_left": None if left is None else round(left, 1),
        }


class Watch:
    """Work under way, seen from outside: every batch is an event and, now and then, a heartbeat."""

    def __init__(self, progress: Progress, log: RunLog, doing: str, pace: Pace, others: Callable[[], int]) -> None:
        self.pace, self._progress, self._log, self._doing = pace, progress, log, doing
        self._ask, self._others, self._asked = others, 0, 0.0

    def advance(self, examples: int, **facts: float | int) -> None:
        """Report that so many more are done, with further numbers beside it and in the heartbeat."""
        self.pace.advance(examples)
        if time.monotonic() - self._asked > BEAT:  # progress is of the whole, of which other processes do their part
            self._others, self._asked = self._ask(), time.monotonic()
        rate = self.pace.together(self._others) or None
        self._progress(Advanced(self._doing, self.pace.done + self._others, self.pace.total, rate, facts))
        self._log.beat(self._doing, **self.pace.facts(), **facts)

    def pause(self, doing: str) -> None:
        """Something else is being done between two batches."""
        self._log.beat(doing, **self.pace.facts())

    def say(self, line: str) -> None:
        """Report a fact in a sentence."""
        self._progress(Note(line))


@contextlib.contextmanager
def watched(
    progress: Progress, log: RunLog, doing: str, pace: Pace, others: Callable[[], int] = lambda: 0
) -> Iterator[Watch]:
    """Report a stage that counts images, beside a heartbeat, while the block works.

    Args:
        progress: Who is told.
        log: Whose heartbeat it is.
        doing: What is done.
        pace: How far it is.
        others: How many examples other processes have done in this run, where each counts its own.
    """
    progress(Started(doing, pace.done, pace.total))
    try:
        yield Watch(progress, log, doing, pace, others)
    finally:
        progress(Ended(doing))
