"""The list of finished parts of one process: what each holds and the checksum that it must have."""

import dataclasses
import hashlib
import io
import json
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
