"""Read a finished folder of scores."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET
from influence_ssl_jax.store import BASELINES, RUN, RUN_KEYS, SCORES, DamagedError, read_record, read_sealed
from influence_ssl_jax.store.identity import IDENTITY
from influence_ssl_jax.store.result import OWNER


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much a report shows.

    Attributes:
        images: Number of images shown with the highest scores, and with the lowest.
        tail: Share of the examples that tables count as the highest scores, and as the lowest.
        resamples: Number of bootstrap draws for an interval.
    """

    images: int = 24
    tail: float = 0.05
    resamples: int = 200

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        if self.images < 1 or not 0 < self.tail <= 0.5 or self.resamples < 1:
            raise ValueError(
                f"images and resamples must be at least 1, and tail above 0 and at most 0.5, got {self.images}, "
                f"{self.resamples} and {self.tail}."
            )


SAMPLE = 100_000
"""Number of rows of the random sample from which the statistics of a larger run are computed."""
WINDOW = 65_536
"""Number of rows that are in memory at a time if a whole table is read."""
LISTED = 60
"""Number of examples with a remark that are listed one by one."""


@dataclasses.dataclass(frozen=True)
class ScoredFile:
    """A run's files `scores.parquet` and `run.json`, read in parts.

    Attributes:
        folder: The folder of the files.
        record: How the run was made.
        rows: Number of examples; row i is example i.
        columns: Names of the columns.
    """

    folder: Path
    record: dict[str, Any]
    rows: int
    columns: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "ScoredFile":
        """Open the files of a finished run without reading rows.

        Raises:
            StoreError: If the folder does not contain a finished run, or one of its files is damaged.
        """
        for name in (SCORES, RUN):
            if not (folder / name).is_file():
                raise StoreError(
                    f"{folder} has no {name}: it is not a folder of scores, or the run is not finished. Repeat the "
                    "`influence-ssl score` command to finish it, or name another folder."
                )
        try:
            record = read_record(folder, RUN, RUN_KEYS)
            _refuse_foreign_record(folder, record)
            with pq.ParquetFile(folder / SCORES) as file:
                return cls(folder, record, file.metadata.num_rows, tuple(file.schema_arrow.names))
        except (DamagedError, ValueError, OSError) as error:  # errors of pyarrow are of the latter two types
            raise StoreError(
                f"{error} Repeat the `influence-ssl score` command, which makes table and record again from the parts."
            ) from error

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield some columns, or all if None, `WINDOW` rows at a time."""
        # With a buffer, everything that was read would stay in memory.
        with pq.ParquetFile(self.folder / SCORES, pre_buffer=False) as file:
            for batch in file.iter_batches(WINDOW, columns=None if columns is None else list(columns)):
                yield pa.Table.from_batches([batch])

    def read_rows(self, rows: Int[np.ndarray, " some"], columns: Sequence[str] | None = None) -> pa.Table:
        """Return some rows in the given order."""
        order, taken, start = np.argsort(rows, kind="stable"), [], 0
        wanted = np.asarray(rows)[order]
        for table in self.batches(columns):
            inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + table.num_rows)]
            taken.append(table.take(inside - start))
            start += table.num_rows
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(taken).take(back)


def _refuse_foreign_record(folder: Path, record: dict[str, Any]) -> None:
    """Check that a record is of the run of its folder.

    Raises:
        DamagedError: It is the record of another run, as if table and record were copied from another folder.
    """
    try:
        owner = fingerprint(read_sealed(folder / IDENTITY))
    except (FileNotFoundError, DamagedError):
        return
    if owner != record.get(OWNER):
        raise DamagedError(f"{folder / RUN} is the record of another run than the one that {IDENTITY} names.")


class Remarks(NamedTuple):
    """The examples with a remark.

    Attributes:
        rows: The first `LISTED` of them: index, id, score, reason, and the outcome in words.
        total: Their number.
        reasons: The number of examples for each outcome and reason.
    """

    rows: list[dict[str, Any]]
    total: int
    reasons: collections.Counter[tuple[str, str]]


def collect_remarks(tables: Iterable[pa.Table]) -> Remarks:
    """Collect the examples that have a reason.

    The tables have index, id, score and reason.
    """
    first, reasons = list[dict[str, Any]](), collections.Counter[tuple[str, str]]()
    for table in tables:
        for row in table.filter(pc.field("reason") != "").to_pylist():
            row["outcome"] = "skipped" if row["score"] is None else "no finite score"
            if row["score"] is not None and math.isfinite(row["score"]):
                row["outcome"] = "scored with a remark"
            reasons[row["outcome"], row["reason"]] += 1
            if len(first) < LISTED:
                first.append(row)
    return Remarks(first, reasons.total(), reasons)


class Large(NamedTuple):
    """Results over all rows of a run too large for memory.

    Only a sample of the rows is in memory.

    Attributes:
        highest: The rows with the highest scores, the highest first.
        lowest: The rows with the lowest scores, the lowest first.
        inside: The finite scores of the images of the curvature set.
        remarks: The examples with a remark.
    """

    highest: pa.Table
    lowest: pa.Table
    inside: Float[np.ndarray, " members"]
    remarks: Remarks


def _inside(table: pa.Table) -> Float[np.ndarray, " members"]:
    """Return the finite scores of the curvature set's images.

    There are none if these are not marked.
    """
    if IN_CURVATURE_SET not in table.column_names:
        return np.zeros(0)
    marked = table.filter(pc.field(IN_CURVATURE_SET))
    score = marked["score"].to_numpy(zero_copy_only=False).astype(float)
    return score[np.isfinite(score)]


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run in memory, in whole or in part.

    Of a large run, a random sample and both ends are in memory.

    Attributes:
        folder: The folder of the run.
        table: One row per example, in order of index; for a large run, a random sample of `SAMPLE` rows.
        record: How the run was made.
        large: Results over all rows of a large run; None otherwise.
    """

    folder: Path
    table: pa.Table
    record: dict[str, Any]
    large: Large | None = None

    @classmethod
    def load(cls, folder: Path) -> "ScoredRun":
        """Read all rows of a finished run.

        Raises:
            StoreError: As `ScoredFile.open`.
        """
        file = ScoredFile.open(folder)
        return cls(folder, pq.read_table(folder / SCORES), file.record)

    @classmethod
    def load_bounded(cls, folder: Path, images: int, most: int = SAMPLE) -> "ScoredRun":
        """Read a finished run with bounded memory.

        All rows are read, or of a large run a random sample and both ends.

        Args:
            folder: The folder of the run.
            images: Number of rows of each end of a large run.
            most: Largest number of rows that are read completely, and size of the sample of a larger run.

        Raises:
            StoreError: As `ScoredFile.open`.
        """
        file = ScoredFile.open(folder)
        if file.rows <= most:
            return cls.load(folder)
        drawn = randomness.generator(0, Stream.REPORTED).choice(file.rows, most, replace=False, shuffle=False)
        sampled = file.read_rows(np.sort(drawn))
        ends: list[pa.Table] = [sampled.slice(0, 0), sampled.slice(0, 0)]
        inside = [np.zeros(0)]
        for table in file.batches():
            inside.append(_inside(table))
            for place, sign in enumerate((-1.0, 1.0)):
                both = pa.concat_tables([ends[place], table])
                score = sign * both["score"].to_numpy(zero_copy_only=False).astype(float)
                order = np.argsort(score, kind="stable")[:images]  # numbers that are not finite come last
                ends[place] = both.take(order[np.isfinite(score[order])])
        remarks = collect_remarks(file.batches(["index", "id", "score", "reason"]))
        return cls(folder, sampled, file.record, Large(ends[0], ends[1], np.concatenate(inside), remarks))

    @property
    def sampled(self) -> bool:
        """Whether `table` is a sample."""
        return self.large is not None

    def ends(self, images: int) -> tuple[pa.Table, pa.Table]:
        """Return the given number of highest and of lowest scored rows."""
        if self.large is not None:
            return self.large.highest.slice(0, images), self.large.lowest.slice(0, images)
        rows = self.ranking()
        return self.table.take(rows[:images]), self.table.take(rows[::-1][:images])

    def remarks(self) -> Remarks:
        """Return the examples with a remark."""
        if self.large is not None:
            return self.large.remarks
        return collect_remarks([self.table.select(["index", "id", "score", "reason"])])

    def inside(self) -> Float[np.ndarray, " members"]:
        """Return the finite scores of the images of the curvature set."""
        return _inside(self.table) if self.large is None else self.large.inside

    def numbers(self, name: str) -> Float[np.ndarray, " examples"]:
        """Return a column as floating point, NaN for rows without a value."""
        return self.table[name].to_numpy(zero_copy_only=False).astype(float)

    @property
    def score(self) -> Float[np.ndarray, " examples"]:
        """The score of every example, NaN if it has none."""
        return self.numbers("score")

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines that have finite values in this run."""
        present = [name for name in BASELINES if name in self.table.column_names]
        return tuple(name for name in present if np.isfinite(self.numbers(name)).any())

    def ranking(self) -> Int[np.ndarray, " scored"]:
        """Return the rows with finite scores, highest first, ties by index."""
        score = np.where(np.isfinite(self.score), self.score, -np.inf)
        return np.argsort(-score, kind="stable")[: int(np.isfinite(self.score).sum())]

    def tail(self, share: float) -> int:
        """Count `share` of the scored rows in memory, at least 1."""
        return max(1, round(share * int(np.isfinite(self.score).sum())))
