"""The parts of all processes of a run, present and past, as one set of rows in order of index."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from influence_ssl_jax.store.manifest import Kind, Manifest, Part

WINDOW = 65_536
"""Examples that are in memory together when rows are read in order."""


@dataclasses.dataclass
class Parts:
    """One sub-folder for each process that ever wrote here, so that no two write one file.

    Attributes:
        manifests: Of each sub-folder, by its number.
        size: Number of examples of the source.
        lost: Rows of parts that were listed and are missing, changed, or hold an example again.
    """

    manifests: dict[int, Manifest]
    size: int
    lost: int = 0

    @classmethod
    def load(cls, folder: Path, size: int) -> "Parts":
        """What is listed."""
        folder.mkdir(exist_ok=True)
        writers = sorted(int(each.name) for each in folder.iterdir() if each.is_dir() and each.name.isdecimal())
        return cls({writer: Manifest.load(folder / f"{writer:04d}") for writer in writers}, size)

    def check(self) -> None:
        """Keep the parts whose checksum holds and whose examples no earlier one has; delete everything else."""
        finished = np.zeros(self.size, bool)
        for manifest in self.manifests.values():
            self.lost += manifest.check(finished)

    def finished(self) -> Bool[np.ndarray, " size"]:
        """Which examples are in some part."""
        found = np.zeros(self.size, bool)
        for manifest in self.manifests.values():
            found[manifest.indices()] = True
        return found

    def all(self) -> list[Part]:
        """Every part."""
        return [part for manifest in self.manifests.values() for part in manifest.parts]

    def schema(self) -> pa.Schema | None:
        """Of the scored parts; None where there is none."""
        for manifest in self.manifests.values():
            for part in manifest.parts:
                if part.kind == "scored":
                    return manifest.read(part).schema
        return None

    def windows(self, kind: Kind, columns: list[str]) -> Iterator[pa.Table]:
        """Rows in order of index, those of WINDOW neighbouring examples at a time; memory does not grow with the size.

        Raises:
            StoreError: A part has changed since it was written.
        """
        for start in range(0, self.size, WINDOW):
            yield self.window(kind, columns, start)

    def window(self, kind: Kind, columns: list[str], start: int) -> pa.Table:
        """The rows of examples [start, start + WINDOW), in order."""
        tables, end = [], start + WINDOW
        for manifest in self.manifests.values():
            for part in manifest.parts:
                if part.kind == kind and any(first < end and start < last for first, last in part.runs):
                    table = manifest.read(part, columns)
                    index = table["index"].to_numpy()
                    tables.append(table.filter((index >= start) & (index < end)))
        return pa.concat_tables(tables).sort_by("index") if tables else pa.table({})
