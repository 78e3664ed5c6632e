"""Read a finished folder of scores."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store import BASELINES, RUN, SCORES, DamagedError, recorded


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


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """`scores.parquet` and `run.json`.

    Attributes:
        folder: Where they are.
        table: One row per example, in order of index.
        record: How the run was made.
    """

    folder: Path
    table: pa.Table
    record: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "ScoredRun":
        """Read a finished run.

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
            record = recorded(folder, RUN)
            return cls(folder, pq.read_table(folder / SCORES), record)
        except (DamagedError, ValueError, OSError) as error:  # pyarrow's errors are the latter two
            raise StoreError(
                f"{error} Give the same `influence-ssl score` command again: it makes table and record from the parts."
            ) from error

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
        """How many examples `share` of the scored ones are, at least one."""
        return max(1, round(share * int(np.isfinite(self.score).sum())))
