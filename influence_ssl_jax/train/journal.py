"""What a run reports of every epoch: one JSON object per line in a file."""

import json
from collections.abc import Mapping
from pathlib import Path

from influence_ssl_jax.run_log import json_lines
from influence_ssl_jax.store.files import append_line, write_atomically

Row = dict[str, float | int]


class Journal:
    """A JSON-lines file of one row per epoch, whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rows(self) -> list[Row]:
        """The rows written so far; a line that a kill cut short is no row."""
        return json_lines(self._file)

    def keep(self, epochs: int) -> list[Row]:
        """Drop what was reported beyond `epochs`, as a run that goes on from there will report it again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        return kept

    def append(self, row: Mapping[str, float | int]) -> None:
        """Add a row, on disk when this returns."""
        append_line(self._file, json.dumps(dict(row)))
