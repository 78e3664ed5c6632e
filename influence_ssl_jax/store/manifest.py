"""Parts of a run on disk, each listed with its checksum."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store.files import append_line, write_atomically

Kind: TypeAlias = Literal["scored", "skipped"]
LIST, SUM = "manifest.jsonl", "sum"


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of rows.

    Attributes:
        name: File name, numbered in the order of writing.
        kind: Rows with scores, or the examples that could not be read.
        rows: Number of examples.
        sha256: Checksum of the file.
        seconds: Time since the part before it, or since the run began.
        runs: The examples, as [first, last + 1] of each unbroken run of numbers.
        fitted: Digest of the fitted curvature that the scores were made with.
    """

    name: str
    kind: Kind
    rows: int
    sha256: str
    seconds: float
    runs: list[list[int]]
    fitted: str

    def indices(self) -> Int[np.ndarray, " rows"]:
        """Numbers of the examples, ascending."""
        return np.concatenate([np.arange(first, end) for first, end in self.runs])


@dataclasses.dataclass
class Manifest:
    """Parts on disk: a line is written only when its file is whole, so a part without a line does not count.

    Every line has a checksum of its own; one that is torn or changed is as if it had never been written.

    Attributes:
        folder: Where the parts are.
        parts: The listed ones, in the order of writing.
    """

    folder: Path
    parts: list[Part]

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """What is listed; the files are not looked at."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, _listed(folder / LIST))

    def indices(self) -> Int[np.ndarray, " rows"]:
        """Numbers of the examples of all parts, in the order of writing."""
        return np.concatenate([np.zeros(0, np.int64), *(part.indices() for part in self.parts)])

    def check(self, finished: Bool[np.ndarray, " size"]) -> int:
        """Keep the parts whose checksum holds and whose examples no earlier one has; delete everything else.

        Args:
            finished: Which examples are in earlier parts; those of the parts that are kept are added.

        Returns:
            Rows of the parts that were listed and are not kept.
        """
        sound, lost = [], 0
        for part in self.parts:
            indices = part.indices()
            if indices[-1] < len(finished) and not finished[indices].any() and self.sound(part):
                finished[indices] = True
                sound.append(part)
            else:
                lost += part.rows
        self.keep(sound)
        return lost

    def keep(self, sound: list[Part]) -> None:
        """Forget all other parts and delete every other file."""
        names = {part.name for part in sound}
        for file in self.folder.iterdir():
            if file.is_file() and file.name not in names and file.name != LIST:
                file.unlink()
        write_atomically(self.folder / LIST, "".join(_line(part) + "\n" for part in sound).encode())
        self.parts = sound

    def sound(self, part: Part) -> bool:
        """Whether the file is there and is what was written."""
        path = self.folder / part.name
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == part.sha256

    def add(self, kind: Kind, table: pa.Table, seconds: float, fitted: str) -> None:
        """Write the file, then its line."""
        number = 1 + max((int(part.name.split(".")[0]) for part in self.parts), default=-1)
        name = f"{number:06d}.parquet"
        checksum = write_atomically(self.folder / name, to_bytes(table))
        part = Part(name, kind, table.num_rows, checksum, seconds, runs_of(table["index"].to_numpy()), fitted)
        append_line(self.folder / LIST, _line(part))
        self.parts.append(part)

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """Rows of a part, checked again.

        Raises:
            StoreError: The file has changed since it was written.
        """
        content = (self.folder / part.name).read_bytes()
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise StoreError(
                f"{self.folder / part.name} has changed since it was written; run the same command again: "
                f"its {part.rows} examples will be computed anew."
            )
        return pq.read_table(io.BytesIO(content), columns=columns)


def runs_of(indices: Int[np.ndarray, " rows"]) -> list[list[int]]:
    """A set of numbers as [first, last + 1] of its unbroken runs, ascending."""
    ordered = np.sort(indices)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(ordered, breaks) if len(run)]


def to_bytes(table: pa.Table) -> bytes:
    """A table as one parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_compliant_nested_type=False)  # lists keep their field names
    return buffer.getvalue()


def _line(part: Part) -> str:
    plain = dataclasses.asdict(part)
    return json.dumps({**plain, SUM: _sum(plain)})


def _sum(plain: dict) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _listed(path: Path) -> list[Part]:
    parts: list[Part] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            plain = json.loads(line)
            if plain.pop(SUM) == _sum(plain):
                parts.append(Part(**plain))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # torn by a kill, or changed: never promised
    return parts


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
