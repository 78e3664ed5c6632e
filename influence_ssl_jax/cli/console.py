"""Show the progress and the results of runs on a console."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import printable
from influence_ssl_jax.progress import Advanced, Ended, Event, Note, Started

EVERY = 60.0
"""Seconds between lines if the console is not a terminal."""


class Renderer:
    """A printer of the events of runs.

    It shows a progress bar on a terminal, else a line per minute.

    Args:
        out: The console.

    Examples:
        >>> from pathlib import Path
        >>> from influence_ssl_jax.progress import Written
        >>> Renderer(Console(width=80))(Written("Scores", Path("runs/x/scores.parquet")))
        Scores: runs/x/scores.parquet
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        self._stage = contextlib.ExitStack()
        self._bars: Bars | None = None
        self._latest: Advanced | None = None

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Advanced):
            self._advance(event)
        elif isinstance(event, Ended):
            self._bars = self._latest = None
            self._stage.close()
        elif isinstance(event, Note):
            text = f"note: {event.text}" if event.kind == "caution" else event.text
            self._out.print(text, highlight=False, markup=False, style="dim" if event.kind == "detail" else None)
        else:
            self._out.print(
                f"{event.name}: {printable(str(event.path))}", highlight=False, markup=False, soft_wrap=True
            )

    def _start(self, event: Started) -> None:
        """Begin to show a stage."""
        if event.done is None or event.total is None:
            began = time.monotonic()
            if self._out.is_terminal:
                self._stage.enter_context(self._out.status(event.stage))
            line = lambda: f"{duration(time.monotonic() - began)} so far"  # noqa: E731
        else:
            done, total = event.done, event.total
            self._bars = self._stage.enter_context(_bars(self._out))
            self._task = self._bars.add_task(event.stage, total=total, completed=done, said=COMPILING)
            line = lambda: count(self._latest) if self._latest else f"{_of(done, total)}, {COMPILING}"  # noqa: E731
        self._stage.enter_context(_lines(self._out, event.stage, line))

    def _advance(self, event: Advanced) -> None:
        """Show how far a stage is."""
        self._latest = event
        if self._bars is not None:
            shown = " · ".join([event.stage, *(f"{name} {value:.4g}" for name, value in event.values.items())])
            self._bars.update(self._task, description=shown, completed=event.done, said=speed(event))


COMPILING = "compiling …"
"""What is shown in place of a speed before the first batch is finished."""


def _bars(out: Console) -> Bars:
    """Return a progress bar with speed, elapsed time and remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=out, refresh_per_second=2)


@contextlib.contextmanager
def _lines(out: Console, doing: str, line: Callable[[], str]) -> Iterator[None]:
    """Print a line every `EVERY` seconds during the block.

    It prints nothing if there is a terminal.
    """
    if out.is_terminal or out.quiet:
        yield
        return
    ended = threading.Event()

    def speak() -> None:
        with contextlib.suppress(BrokenPipeError):  # the run itself meets it at its next line
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


def speed(event: Advanced) -> str:
    """Write the speed of all processes together.

    The first batch compiles and has no speed.

    Examples:
        >>> speed(Advanced("scoring", 20, 100, 12.5))
        '12.5 images/s'
    """
    return "first batch done" if event.rate is None else f"{event.rate:,.4g} images/s"


def count(event: Advanced) -> str:
    """Write how far a stage is, its speed, and the remaining time.

    Examples:
        >>> count(Advanced("scoring", 20, 100, 1.0))
        '20 of 100 images, 1 images/s, 80 s left'
    """
    left = "" if event.rate is None else f", {duration(max(event.total - event.done, 0) / event.rate)} left"
    return f"{_of(event.done, event.total)}, {speed(event)}{left}"


def _of(done: int, total: int) -> str:
    """Write how many images of all are finished."""
    return f"{done:,} of {total:,} images"


def duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours.

    Examples:
        >>> duration(7300.0)
        '2 h 2 min'
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], out: Console) -> None:
    """Print a table: the first column is text, the others numbers."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


def print_audit(record: dict[str, Any], out: Console) -> None:
    """Print the table of an audit and its remarks."""
    from influence_ssl_jax.report import audited  # only this command needs it

    title = f"Against {record['counts']['certified']} certified scores, λ = {record['damping']:.4g}"
    print_table(title, audited.HEADS, audited.table(record), out)
    for remark in audited.remarks(record):
        out.print(remark, style="dim", highlight=False)


def print_accuracies(record: dict[str, Any], out: Console) -> None:
    """Print the accuracies that a probe measured.

    Examples:
        >>> accuracies = {"linear": 0.5, "linear_top5": None, "knn": 0.25}
        >>> record = {"accuracies": accuracies, "counts": {"test": 8, "training": 20}}
        >>> print_accuracies(record, Console(width=80))
        linear 0.5000 · knn 0.2500, of 8 test images by 20 training images
    """
    accuracies, counts = record["accuracies"], record["counts"]
    shown = " · ".join(f"{name} {value:.4f}" for name, value in accuracies.items() if value is not None)
    text = f"{shown}, of {counts['test']:,} test images by {counts['training']:,} training images"
    out.print(text, highlight=False, soft_wrap=True)


def print_comparison(rows: Sequence[dict[str, Plain]], out: Console) -> None:
    """Print a table for each damping, then failed backends with reasons."""
    from influence_ssl_jax.report import backends  # loads matplotlib

    for damping in dict.fromkeys(row["damping"] for row in rows):
        print_table(f"λ = {damping:g} × mean eigenvalue", backends.HEADS, backends.table(rows, damping), out)
    for row in rows:
        if row["reason"]:
            out.print(f"{row['name']}, λ {row['damping']:g}: {row['reason']}", style="dim", highlight=False)
