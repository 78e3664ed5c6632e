"""What a run reports while it runs: a progress bar, and one JSON object per line in a file."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Row = dict[str, float | int]


class Journal:
    """A JSON-lines file of one row per epoch, whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[Row]:
        """The rows written so far; a line that a kill cut short is no row."""
        if not self._file.exists():
            return []
        rows = []
        for line in self._file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def keep(self, epochs: int) -> list[Row]:
        """Drop what was reported beyond `epochs`, as a run that goes on from there will report it again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        self._file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row, on disk when this returns."""
        with self._file.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")


class Bar:
    """Loss, throughput and time left of the steps of a run."""

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, completed=done, loss=float("nan"), speed=0.0, epoch=0)

    def advance(self, epoch: int, loss: float, images_per_second: float) -> None:
        """One step further."""
        self._progress.update(self._task, advance=1, epoch=epoch, loss=loss, speed=images_per_second)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, highlight=False)


@contextlib.contextmanager
def progress(console: Console, total: int, done: int) -> Iterator[Bar]:
    """A bar of `total` steps of which `done` are behind."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f} · {task.fields[speed]:.0f} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=2) as shown:
        yield Bar(shown, total, done)
