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
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET
from influence_ssl_jax.store import BASELINES, RUN, SCORES, DamagedError, read_record


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much a report shows.

    Attributes:
        images: Most, and least, influential images shown.
        tail: Share of the examples that counts as most, and as least, influential in tables.
        resamples: Bootstrap draws behind an interval.
    """

    images: int = 24
    tail: float = 0.05
    resamples: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be shown."""
        if self.images < 1 or not 0 < self.tail <= 0.5 or self.resamples < 1:
            raise ValueError(
                f"images and resamples are at least 1 and tail is above 0 and at most 0.5, got {self.images}, "
                f"{self.resamples} and {self.tail}."
            )


SAMPLE = 100_000
"""Rows of the random sample that statistics of a larger run are of."""
WINDOW = 65_536
"""Rows that are in memory together when a table is read from its beginning to its end."""
LISTED = 60
"""Examples with a remark that are listed one by one."""


@dataclasses.dataclass(frozen=True)
class ScoredFile:
    """`scores.parquet`, read a bounded number of rows at a time, and `run.json`.

    Attributes:
        folder: Where they are.
        record: How the run was made.
        rows: Number of examples: row i is example i.
        columns: Names of the columns.
    """

    folder: Path
    record: dict[str, Any]
    rows: int
    columns: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "ScoredFile":
        """Check a finished run, and read nothing of its rows.

        Raises:
            StoreError: The folder has none, or one of its files is damaged.
        """
        for name in (SCORES, RUN):
            if not (folder / name).is_file():
                raise StoreError(
                    f"{folder} has no {name}: it is no folder of scores, or the run is not finished. Finish it with "
                    "the same `influence-ssl score` command, or name another folder."
                )
        try:
            record = read_record(folder, RUN)
            with pq.ParquetFile(folder / SCORES) as file:
                return cls(folder, record, file.metadata.num_rows, tuple(file.schema_arrow.names))
        except (DamagedError, ValueError, OSError) as error:  # pyarrow's errors are the latter two
            raise StoreError(
                f"{error} Give the same `influence-ssl score` command again: it makes table and record from the parts."
            ) from error

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Some columns, all where None, WINDOW rows at a time."""
        # Buffered, everything that has been read would stay in memory.
        with pq.ParquetFile(self.folder / SCORES, pre_buffer=False) as file:
            for batch in file.iter_batches(WINDOW, columns=None if columns is None else list(columns)):
                yield pa.Table.from_batches([batch])

    def taken(self, rows: Int[np.ndarray, " some"], columns: Sequence[str] | None = None) -> pa.Table:
        """Some rows, in the order in which they are named."""
        order, found, start = np.argsort(rows, kind="stable"), [], 0
        wanted = np.asarray(rows)[order]
        for table in self.batches(columns):
            inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + table.num_rows)]
            found.append(table.take(inside - start))
            start += table.num_rows
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(found).take(back)


class Remarks(NamedTuple):
    """What is the matter with examples.

    Attributes:
        rows: The first LISTED of them: index, id, score, reason, and the outcome in words.
        total: How many there are.
        reasons: How often each outcome has each reason.
    """

    rows: list[dict[str, Any]]
    total: int
    reasons: collections.Counter[tuple[str, str]]


def remarks_of(tables: Iterable[pa.Table]) -> Remarks:
    """Collect the examples that have a reason, from tables with index, id, score and reason."""
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
    """What is known of all rows of a run of which only a sample is in memory.

    Attributes:
        highest: The rows with the highest scores, the highest first.
        lowest: Those with the lowest, the lowest first.
        inside: The finite scores of the images of the curvature set.
        remarks: What is the matter with examples.
    """

    highest: pa.Table
    lowest: pa.Table
    inside: Float[np.ndarray, " members"]
    remarks: Remarks


def _inside(table: pa.Table) -> Float[np.ndarray, " members"]:
    """The finite scores of the images of the curvature set, where they are marked."""
    if IN_CURVATURE_SET not in table.column_names:
        return np.zeros(0)
    marked = table.filter(pc.field(IN_CURVATURE_SET))
    score = marked["score"].to_numpy(zero_copy_only=False).astype(float)
    return score[np.isfinite(score)]


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """Rows of a run in memory: all of them, or a random sample and both ends of a large one.

    Attributes:
        folder: Where the run is.
        table: One row per example, in order of index; of a large run, a random sample of SAMPLE rows.
        record: How the run was made.
        large: Of a large run, what is known of all its rows.
    """

    folder: Path
    table: pa.Table
    record: dict[str, Any]
    large: Large | None = None

    @classmethod
    def load(cls, folder: Path) -> "ScoredRun":
        """Read every row of a finished run.

        Raises:
            StoreError: The folder has none, or one of its files is damaged.
        """
        file = ScoredFile.open(folder)
        return cls(folder, pq.read_table(folder / SCORES), file.record)

    @classmethod
    def bounded(cls, folder: Path, images: int, most: int = SAMPLE) -> "ScoredRun":
        """Read a finished run in memory that does not grow with it.

        Args:
            folder: Where it is.
            images: How many rows of either end are wanted of a large one.
            most: Rows beyond which a run is large: `table` is then a random sample of so many.

        Raises:
            StoreError: The folder has none, or one of its files is damaged.
        """
        file = ScoredFile.open(folder)
        if file.rows <= most:
            return cls.load(folder)
        drawn = randomness.generator(0, Stream.REPORTED).choice(file.rows, most, replace=False, shuffle=False)
        sampled = file.taken(np.sort(drawn))
        ends: list[pa.Table] = [sampled.slice(0, 0), sampled.slice(0, 0)]
        inside = [np.zeros(0)]
        for table in file.batches():
            inside.append(_inside(table))
            for place, sign in enumerate((-1.0, 1.0)):
                both = pa.concat_tables([ends[place], table])
                score = sign * both["score"].to_numpy(zero_copy_only=False).astype(float)
                order = np.argsort(score, kind="stable")[:images]  # what is not finite comes last
                ends[place] = both.take(order[np.isfinite(score[order])])
        remarks = remarks_of(file.batches(["index", "id", "score", "reason"]))
        return cls(folder, sampled, file.record, Large(ends[0], ends[1], np.concatenate(inside), remarks))

    @property
    def sampled(self) -> bool:
        """Whether `table` is a sample."""
        return self.large is not None

    def ends(self, images: int) -> tuple[pa.Table, pa.Table]:
        """The rows with the highest scores, and those with the lowest, so many of each."""
        if self.large is not None:
            return self.large.highest.slice(0, images), self.large.lowest.slice(0, images)
        rows = self.ranked()
        return self.table.take(rows[:images]), self.table.take(rows[::-1][:images])

    def remarks(self) -> Remarks:
        """What is the matter with examples."""
        if self.large is not None:
            return self.large.remarks
        return remarks_of([self.table.select(["index", "id", "score", "reason"])])

    def inside(self) -> Float[np.ndarray, " members"]:
        """The finite scores of the images of the curvature set."""
        return _inside(self.table) if self.large is None else self.large.inside

    def numbers(self, name: str) -> Float[np.ndarray, " examples"]:
        """A column as floating point, NaN where it has no value."""
        return self.table[name].to_numpy(zero_copy_only=False).astype(float)

    @property
    def score(self) -> Float[np.ndarray, " examples"]:
        """The score of every example, NaN where it has none."""
        return self.numbers("score")

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines that this run has values of."""
        present = [name for name in BASELINES if name in self.table.column_names]
        return tuple(name for name in present if np.isfinite(self.numbers(name)).any())

    def ranked(self) -> Int[np.ndarray, " scored"]:
        """Rows with a finite score, from the highest to the lowest; ties in order of index."""
        score = np.where(np.isfinite(self.score), self.score, -np.inf)
        return np.argsort(-score, kind="stable")[: int(np.isfinite(self.score).sum())]

    def tail(self, share: float) -> int:
        """How many of the rows in memory `share` of the scored ones are, at least one."""
        return max(1, round(share * int(np.isfinite(self.score).sum())))
