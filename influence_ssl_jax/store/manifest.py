"""Keep a run's rows in parts on disk, listed with checksums."""

import dataclasses
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.scoring.table import EMBEDDING
from influence_ssl_jax.store.files import TEMPORARY, append_line, write_atomically

Kind: TypeAlias = Literal["scored", "skipped"]
LIST, SUM = "manifest.jsonl", "sum"
_WRITTEN = re.compile(r"\d{6,}\.(parquet|arrow)")


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of rows.

    Attributes:
        name: File name; files are numbered in the order in which they are written.
        kind: `scored` for rows with scores, `skipped` for examples that could not be read.
        rows: Number of examples.
        sha256: Checksum of the file.
        seconds: Time since the part before it, or since the run began.
        runs: The numbers of the examples, as [first, last + 1] of each run of consecutive numbers.
        fitted: Digest of the fitted curvature that the scores were made with.
        owner: Fingerprint of the run that the rows belong to.
        embeddings: Checksum of the file beside it that holds the embeddings; empty if there is none.
    """

    name: str
    kind: Kind
    rows: int
    sha256: str
    seconds: float
    runs: list[list[int]]
    fitted: str
    owner: str
    embeddings: str = ""

    @property
    def beside(self) -> str:
        """The name of the file of embeddings."""
        return self.name.replace(".parquet", ".arrow")

    def indices(self) -> Int[np.ndarray, " rows"]:
        """Return the numbers of the examples, ascending."""
        return np.concatenate([np.arange(first, end) for first, end in self.runs])


@dataclasses.dataclass
class Manifest:
    """The parts that one process has written, and their list.

    The line of a part is written after its file, so a part without a line does not count. Every line has a checksum of
    its own. A line that was cut short or changed counts as absent.

    Attributes:
        folder: The folder of the parts.
        parts: The listed parts, in the order in which they were written.
        owner: Fingerprint of the run that the parts belong to.
    """

    folder: Path
    parts: list[Part]
    owner: str

    @classmethod
    def load(cls, folder: Path, owner: str) -> "Manifest":
        """Read the list of parts, and not their files.

        Raises:
            StoreError: Parts of another run are in the list.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts = _read_list(folder / LIST)
        foreign = [part for part in parts if part.owner != owner]
        if foreign:
            raise StoreError(
                f"{folder} holds {len(foreign)} parts of another run ({sum(part.rows for part in foreign)} rows; the first "
                f"is {foreign[0].name}): other settings, other images or another network made them. Move {folder} away; "
                "what is then missing is computed."
            )
        return cls(folder, parts, owner)

    def indices(self) -> Int[np.ndarray, " rows"]:
        """Return the example numbers of all parts, in order of writing."""
        return np.concatenate([np.zeros(0, np.int64), *(part.indices() for part in self.parts)])

    def check(self, finished: Bool[np.ndarray, " size"]) -> int:
        """Keep the intact parts of new examples; delete all others.

        An intact part has the right checksum, and none of its examples is in an earlier part.

        Args:
            finished: Which examples are in earlier parts. The examples of the parts that are kept are added to it.

        Returns:
            Number of rows in the parts that were listed and are not kept.
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
        """Take all other parts off the list, then delete their files.

        The unfinished files of a killed process are deleted too.
        """
        names = {part.name for part in sound} | {part.beside for part in sound if part.embeddings}
        write_atomically(self.folder / LIST, "".join(_line(part) + "\n" for part in sound).encode())
        self.parts = sound
        for file in self.folder.iterdir():
            if file.name not in names and (_WRITTEN.fullmatch(file.name) or file.name.endswith(TEMPORARY)):
                file.unlink()

    def forget(self, indices: Int[np.ndarray, " count"]) -> int:
        """Remove some examples from their parts, and return how many.

        A kill loses no other example: a part is written under a new name before the old one is deleted.
        """
        sound, new = [], []
        for part in self.parts:
            kept = ~np.isin(self.read(part, ["index"])["index"].to_numpy(), indices)
            if kept.all():
                sound.append(part)
            elif kept.any():
                new.append((part, self.read(part).filter(kept)))
        before, first = sum(part.rows for part in self.parts), self._next()
        for number, (part, table) in enumerate(new, first):
            sound.append(self._write_part(number, part.kind, table, part.seconds, part.fitted))
        self.keep(sound)
        return before - sum(part.rows for part in sound)

    def sound(self, part: Part) -> bool:
        """Test whether a part's files exist and are as written."""
        files = {part.name: part.sha256} | ({part.beside: part.embeddings} if part.embeddings else {})
        return all(
            (self.folder / name).is_file() and hashlib.sha256((self.folder / name).read_bytes()).hexdigest() == digest
            for name, digest in files.items()
        )

    def drop_embeddings(self) -> None:
        """Delete the embeddings of every part.

        A kill leaves them whole, or leaves files that the next `check` deletes.
        """
        self.keep([dataclasses.replace(part, embeddings="") for part in self.parts])

    def add(self, kind: Kind, table: pa.Table, seconds: float, fitted: str) -> None:
        """Write the file of a new part, then its line.

        Raises:
            FullDiskError: The disk is full.
        """
        part = self._write_part(self._next(), kind, table, seconds, fitted)
        append_line(self.folder / LIST, _line(part))
        self.parts.append(part)

    def _next(self) -> int:
        """Return the number of the next file."""
        return 1 + max((int(part.name.split(".")[0]) for part in self.parts), default=-1)

    def _write_part(self, number: int, kind: Kind, table: pa.Table, seconds: float, fitted: str) -> Part:
        """Write a part's file, and return its entry for the list."""
        part = Part(
            name=f"{number:06d}.parquet",
            kind=kind,
            rows=table.num_rows,
            sha256="",
            seconds=seconds,
            runs=runs_of(table["index"].to_numpy()),
            fitted=fitted,
            owner=self.owner,
        )
        embeddings = ""
        if EMBEDDING in table.column_names:
            embeddings = write_atomically(self.folder / part.beside, _to_arrow(table.select([EMBEDDING])))
            table = table.drop_columns([EMBEDDING])
        checksum = write_atomically(self.folder / part.name, to_bytes(table))
        return dataclasses.replace(part, sha256=checksum, embeddings=embeddings)

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """Read the rows of a part, after a comparison with its checksum.

        Args:
            part: The part.
            columns: The columns to read; all if None. Embeddings are read only if they are among them.

        Raises:
            StoreError: A file has changed since it was written.
        """
        plain = None if columns is None else [name for name in columns if name != EMBEDDING]
        table = pq.read_table(io.BytesIO(self._content(part, part.name, part.sha256)), columns=plain)
        if part.embeddings and (columns is None or EMBEDDING in columns):
            beside = pa.ipc.open_file(self._content(part, part.beside, part.embeddings)).read_all()
            table = table.append_column(EMBEDDING, beside[EMBEDDING])
        return table

    def _content(self, part: Part, name: str, digest: str) -> bytes:
        """Return the bytes of one file of a part.

        Raises:
            StoreError: They have changed since they were written.
        """
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise StoreError(
                f"{self.folder / name} has changed since it was written; run the same command again: "
                f"its {part.rows} examples will be computed again."
            )
        return content


def runs_of(indices: Int[np.ndarray, " rows"]) -> list[list[int]]:
    """Return a set of numbers as ascending runs `[first, last + 1]`.

    A run has consecutive numbers.

    >>> runs_of(np.array([5, 1, 2, 3]))
    [[1, 4], [5, 6]]
    """
    ordered = np.sort(indices)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(ordered, breaks) if len(run)]


def gaps_and_repeats(runs: Iterable[Sequence[int]], size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the numbers below `size` in no run, and repeated ones.

    Repeated numbers are in two or more runs. Both results are runs themselves.

    Args:
        runs: [first, last + 1] of each, in any order.
        size: One more than the last number.

    >>> gaps_and_repeats([[4, 6], [0, 3], [2, 5]], 8)
    ([[6, 8]], [[2, 3], [4, 5]])
    """
    missing, repeated = list[list[int]](), list[list[int]]()
    reached = twice = 0
    for first, end in sorted(map(tuple, runs)):
        if first > reached:
            missing.append([reached, first])
        begun, again = max(first, twice), min(end, reached)
        if begun < again:
            repeated.append([begun, again])
            twice = again
        reached = max(reached, end)
    if reached < size:
        missing.append([reached, size])
    return missing, repeated


def to_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_compliant_nested_type=False)  # lists keep their field names
    return buffer.getvalue()


def _to_arrow(table: pa.Table) -> bytes:
    """Return a table as an uncompressed Arrow file's bytes.

    Compression does not make embeddings smaller.
    """
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def _line(part: Part) -> str:
    """Return the line of a part, with its checksum."""
    plain = dataclasses.asdict(part)
    return json.dumps({**plain, SUM: _sum(plain)})


def _sum(plain: dict) -> str:
    """Return the checksum of a line: 16 hexadecimal digits."""
    return fingerprint(plain)[:16]


def _read_list(path: Path) -> list[Part]:
    """Read the parts of a list, without damaged lines.

    A damaged line is not what was written.
    """
    parts: list[Part] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            plain = json.loads(line)
            if plain.pop(SUM) == _sum(plain):
                parts.append(Part(**plain))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # cut short by a kill, or changed
    return parts


WINDOW = 65_536
"""How many neighbouring examples are in memory together when rows are read in order."""


@dataclasses.dataclass
class Parts:
    """All parts of a run, in a sub-folder for each process.

    Every process that ever wrote has one, so that no two write one file.

    Attributes:
        manifests: The list of each sub-folder, by the number of its process.
        size: Number of examples of the source.
        lost: Number of rows in parts that were listed and are absent, changed, or hold an example a second time.
    """

    manifests: dict[int, Manifest]
    size: int
    lost: int = 0

    @classmethod
    def load(cls, folder: Path, size: int, owner: str) -> "Parts":
        """Read the lists of all sub-folders.

        Raises:
            StoreError: Parts of another run are in a list.
        """
        folder.mkdir(exist_ok=True)
        return cls({int(each.name): Manifest.load(each, owner) for each in writers(folder)}, size)

    def check(self) -> None:
        """Keep the intact parts of new examples; delete all others.

        An intact part has the right checksum, and none of its examples is in an earlier part.
        """
        finished = np.zeros(self.size, bool)
        for manifest in self.manifests.values():
            self.lost += manifest.check(finished)

    def finished(self) -> Bool[np.ndarray, " size"]:
        """Return which examples are in a part.

        This takes one byte for each example of the source.
        """
        present = np.zeros(self.size, bool)
        for part in self.all():
            for first, end in part.runs:
                present[first:end] = True
        return present

    def rows(self) -> int:
        """Return the number of listed rows."""
        return sum(part.rows for part in self.all())

    def refuse_gaps(self) -> None:
        """Check that every example is in exactly one part.

        Raises:
            StoreError: An example is in no part, or in two.
        """
        missing, repeated = gaps_and_repeats((run for part in self.all() for run in part.runs), self.size)
        if missing:
            count, first = sum(end - start for start, end in missing), missing[0][0]
            raise StoreError(f"{count} of {self.size} examples have no score yet, {first} first.")
        if repeated:
            count, first = sum(end - start for start, end in repeated), repeated[0][0]
            raise StoreError(
                f"{count} of {self.size} examples are in two parts, {first} first: two processes did the same work. Give "
                "the same command again: the second of each two parts is dropped, and what is then missing is computed."
            )

    def forget(self, indices: Int[np.ndarray, " count"]) -> int:
        """Remove some examples from their parts, and return how many."""
        return sum(manifest.forget(indices) for manifest in self.manifests.values())

    def embedded(self) -> bool:
        """Return whether the embeddings of every scored row are in the folder."""
        return all(part.embeddings for part in self.all() if part.kind == "scored")

    def drop_embeddings(self) -> None:
        """Delete the embeddings of every part."""
        for manifest in self.manifests.values():
            manifest.drop_embeddings()

    def digest(self) -> str:
        """Return one digest of all parts' rows, without embeddings."""
        return hashlib.sha256("".join(sorted(part.sha256 for part in self.all())).encode()).hexdigest()

    def seconds(self) -> float:
        """Return how long the parts took.

        It is the time of the slowest process, because processes work side by side.
        """
        return max((sum(part.seconds for part in each.parts) for each in self.manifests.values()), default=0.0)

    def all(self) -> list[Part]:
        """Return every part."""
        return [part for manifest in self.manifests.values() for part in manifest.parts]

    def schema(self) -> pa.Schema | None:
        """Return the schema of the scored parts; None if there are none."""
        for manifest in self.manifests.values():
            for part in manifest.parts:
                if part.kind == "scored":
                    return manifest.read(part).schema
        return None

    def windows(self, kind: Kind, columns: list[str]) -> Iterator[pa.Table]:
        """Read rows in order of index, WINDOW neighbouring examples at once.

        Yields:
            One table for each window of the source, an empty one if it has no such rows.

        Raises:
            StoreError: A part has changed since it was written.
        """
        places: defaultdict[int, list[tuple[Manifest, Part]]] = defaultdict(list)
        for manifest in self.manifests.values():
            for part in manifest.parts:
                if part.kind == kind:
                    for number in sorted({k for first, end in part.runs for k in range(first // WINDOW, _up(end))}):
                        places[number].append((manifest, part))
        for number in range(_up(self.size)):
            tables, start = [], number * WINDOW
            for manifest, part in places[number]:
                table = manifest.read(part, columns)
                index = table["index"].to_numpy()
                tables.append(table.filter((index >= start) & (index < start + WINDOW)))
            yield pa.concat_tables(tables).sort_by("index") if tables else pa.table({})


def _up(end: int) -> int:
    """Return how many windows hold the examples below `end`."""
    return -(-end // WINDOW)


def find_owners(folder: Path) -> set[str]:
    """Return the fingerprints of the runs whose parts a folder holds.

    Folders below it are searched too.
    """
    return {part.owner for file in sorted(folder.rglob(LIST)) for part in _read_list(file)}


def writers(folder: Path) -> list[Path]:
    """Return, in order, the sub-folders of processes that wrote below `folder`."""
    return sorted(
        (each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal()), key=lambda f: int(f.name)
    )
