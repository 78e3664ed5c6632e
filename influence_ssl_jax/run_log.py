"""What a long run tells while it runs: a structured log, a heartbeat, a bar with speed and time left."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import InfluenceError, disk_of
from influence_ssl_jax.signals import Terminated, last_word

BEAT = 5.0
"""Seconds between heartbeats."""
EVERY = 60.0
"""Seconds between lines where there is no terminal."""


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

    def said(self, others: int = 0) -> str:
        """The speed of all processes in words: there is none while the first batch compiles."""
        if not self._first:
            return "compiling …"
        return f"{self.together(others):,.4g} images/s" if self.speed else "first batch done"

    def line(self, others: int = 0) -> str:
        """How far all are, how fast, and how long it will take: what is said where there is no bar."""
        done, speed = self.done + others, self.together(others)
        ahead = f", {duration(max(self.total - done, 0) / speed)} left" if speed else ""
        return f"{done:,} of {self.total:,} images, {self.said(others)}{ahead}"

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
    """Work under way, seen from outside: every batch moves the bar and, now and then, the heartbeat."""

    def __init__(self, progress: Progress, log: RunLog, doing: str, pace: Pace, others: Callable[[], int]) -> None:
        self.pace, self._progress, self._log, self._doing = pace, progress, log, doing
        self._ask, self._others, self._asked = others, 0, 0.0
        self._task = progress.add_task(doing, total=pace.total, completed=pace.done, said=pace.said())

    def advance(self, examples: int, **facts: float | int) -> None:
        """So many more are done; further numbers stand beside the bar and in the heartbeat."""
        self.pace.advance(examples)
        shown = " · ".join([self._doing, *(f"{name} {value:.4g}" for name, value in facts.items())])
        if time.monotonic() - self._asked > BEAT:  # the bar is of the whole, of which other processes do their part
            self._others, self._asked = self._ask(), time.monotonic()
        done = self.pace.done + self._others
        self._progress.update(self._task, description=shown, completed=done, said=self.pace.said(self._others))
        self._log.beat(self._doing, **self.pace.facts(), **facts)

    def line(self) -> str:
        """How far it is, in words."""
        return self.pace.line(self._others)

    def pause(self, doing: str) -> None:
        """Something else is being done between two batches."""
        self._log.beat(doing, **self.pace.facts())

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, highlight=False)


@contextlib.contextmanager
def watched(
    out: Console, log: RunLog, doing: str, pace: Pace, others: Callable[[], int] = lambda: 0
) -> Iterator[Watch]:
    """Show a bar of examples with speed and time left, beside a heartbeat, while the block works.

    Where there is no terminal: a line at the beginning, and one a minute.

    Args:
        out: Where the bar is shown.
        log: Whose heartbeat it is.
        doing: What is done.
        pace: How far it is.
        others: How many examples other processes have done in this run, where each counts its own.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, refresh_per_second=2) as progress:
        watch = Watch(progress, log, doing, pace, others)
        with _lines(out, doing, watch.line):
            yield watch


@contextlib.contextmanager
def under_way(out: Console, doing: str) -> Iterator[None]:
    """Say what is done while the block does it: with a moving sign, or without a terminal a line, then one a minute."""
    began = time.monotonic()
    sign = out.status(doing) if out.is_terminal else contextlib.nullcontext()
    with sign, _lines(out, doing, lambda: f"{duration(time.monotonic() - began)} so far"):
        yield


@contextlib.contextmanager
def _lines(out: Console, doing: str, line: Callable[[], str]) -> Iterator[None]:
    """Print a line now and every EVERY seconds while the block works, where there is no terminal."""
    if out.is_terminal or out.quiet:
        yield
        return
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(EVERY):
            out.print(f"{doing}: {line()}", highlight=False, markup=False, soft_wrap=True)

    out.print(f"{doing} …", highlight=False, markup=False)
    thread = threading.Thread(target=speak, name="lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
