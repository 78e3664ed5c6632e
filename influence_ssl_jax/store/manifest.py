"""The list of finished parts: what each holds and the checksum that it must have."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store.files import append_line, write_atomically

Kind: TypeAlias = Literal["scored", "skipped"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of rows.

    Attributes:
        name: File name, numbered in the order of writing.
        kind: Rows with scores, or the examples that could not be read.
        rows: Number of examples.
        sha256: Checksum of the file.
        seconds: Time since the part before it, or since the run began.
    """

    name: str
    kind: Kind
    rows: int
    sha256: str
    seconds: float


@dataclasses.dataclass
class Manifest:
    """Parts on disk: a line is written only when its file is whole, so a part without a line does not count.

    Attributes:
        folder: Where the parts are.
        parts: The sound ones, in the order of writing.
        damaged: Rows of the parts that were listed and are missing or changed.
    """

    folder: Path
    parts: list[Part]
    damaged: int = 0

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Keep the parts whose checksum holds; forget and delete everything else."""
        folder.mkdir(exist_ok=True)
        listed = list(_lines(folder / "manifest.jsonl"))
        sound = [part for part in listed if _sound(folder, part)]
        kept = {part.name for part in sound}
        for file in folder.iterdir():
            if file.is_file() and file.name not in kept and file.name != "manifest.jsonl":
                file.unlink()
        lines = "".join(json.dumps(dataclasses.asdict(part)) + "\n" for part in sound)
        write_atomically(folder / "manifest.jsonl", lines.encode())
        return cls(folder, sound, sum(part.rows for part in listed) - sum(part.rows for part in sound))

    def add(self, kind: Kind, table: pa.Table, seconds: float) -> None:
        """Write the file, then its line."""
        number = 1 + max((int(part.name.split(".")[0]) for part in self.parts), default=-1)
        name = f"{number:06d}.parquet"
        checksum = write_atomically(self.folder / name, to_bytes(table))
        part = Part(name, kind, table.num_rows, checksum, seconds)
        append_line(self.folder / "manifest.jsonl", json.dumps(dataclasses.asdict(part)))
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


def to_bytes(table: pa.Table) -> bytes:
    """A table as one parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_compliant_nested_type=False)  # lists keep their field names
    return buffer.getvalue()


def _lines(path: Path) -> list[Part]:
    """The whole lines of the manifest; a torn one, and what follows it, was never promised."""
    parts: list[Part] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            parts.append(Part(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return parts


def _sound(folder: Path, part: Part) -> bool:
    path = folder / part.name
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == part.sha256
