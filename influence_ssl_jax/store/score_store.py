"""Keep scores while a run computes them, and resume from them."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from influence_ssl_jax.configuration import Plain, fingerprint
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.parallel import first_only, require_equal
from influence_ssl_jax.scoring.neighbours import Neighbours
from influence_ssl_jax.scoring.table import CONTENT, EMBEDDING, skipped_table
from influence_ssl_jax.store.distances import Distances
from influence_ssl_jax.store.files import LOCK, Lock, find_living, holder_of, lock
from influence_ssl_jax.store.identity import claim, refuse_disagreement, refuse_foreign
from influence_ssl_jax.store.manifest import Kind, Manifest, Parts, find_owners, writers
from influence_ssl_jax.store.result import OWNER, RUN, SCORES, Extra, find_damage, no_more, write_result


def enter(folder: Path, identity: Plain, size: int) -> tuple[Lock, int]:
    """Lock the folder of a run, and check every part in it.

    A table or a record that is damaged, incomplete or of other parts is deleted, and later made again from the parts.

    Returns:
        The lock, and the number of listed rows that are lost.

    Raises:
        StoreError: The folder is a file, is in use, or holds another run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; the output is a folder. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign(folder, find_owners(folder / "parts"))
    held = lock(folder)
    try:
        claim(folder, identity, find_owners(folder / "parts"))
        refuse_writers(folder / "parts")
        owner = fingerprint(identity)
        parts = Parts.load(folder / "parts", size, owner)
        parts.check()
        if not parts.finished().all() or find_damage(folder, owner, parts):
            for name in (SCORES, RUN):
                (folder / name).unlink(missing_ok=True)
    except BaseException:
        held.close()
        raise
    return held, parts.lost


def refuse_writers(parts: Path) -> None:
    """Check that no earlier run's process still writes its parts.

    The locks of processes that have ended are cleared.

    Raises:
        StoreError: One still writes.
    """
    parts.mkdir(exist_ok=True)
    locks = [each / LOCK for each in writers(parts) if (each / LOCK).exists()]
    alive = find_living(locks)
    if alive:
        raise StoreError(
            f"A process of an earlier run still writes {alive[0].parent}. Wait for it, end it, or choose another folder."
        )
    for each in locks:
        if holder_of(each).get("host") != socket.gethostname():
            os.truncate(each, 0)  # its process was watched, and has ended
        lock(each.parent).close()


LATE = 90.0
"""Seconds for which a shared file system may show what a folder was before."""


class ScoreStore:
    """A resumable output folder of scores.

    It holds parts while scores are made, `scores.parquet` and `run.json` when they all are. The folder belongs to one
    identity (configuration, parameters, data, versions). A part is appended whole or not at all and has a checksum; a
    part that fails it is made again. One run at a time holds the folder; each of its processes writes parts of its own,
    and the first one puts them together.

        with ScoreStore.open(folder, identity, size=len(source)) as store:
            store.bind(digest)
            for batch in …(store.todo()):
                store.append(table)
                store.skip(batch.skipped)
            store.finish(source.attributes())
    """

    def __init__(self, folder: Path, identity: Plain, held: list[Lock], parts: Parts) -> None:
        self.folder = folder
        self.identity = identity
        self._held = held
        self._parts = parts
        self._finished = parts.finished()
        self._since = time.monotonic()
        self._resumed = int(self._finished.sum())
        self._schema = parts.schema()
        self._fitted = ""

    @classmethod
    def open(cls, folder: Path, identity: Plain, size: int) -> "ScoreStore":
        """Begin a run in a new or empty folder, or resume it.

        A run is resumed if it has the same identity. All processes of a run call it together.

        Args:
            folder: The output folder; it is made if it does not exist.
            identity: Everything that the scores depend on; plain JSON.
            size: Number of examples of the source.

        Raises:
            StoreError: The folder is in use, or holds another run (the differences are listed) or other files; or the
                processes of this run were started for different work.
        """
        folder = Path(folder)
        identity = {"size": size, **identity}
        refuse_disagreement(identity)
        entered = first_only(lambda: enter(folder, identity, size))
        held, lost = ([entered[0]], entered[1]) if entered is not None else ([], 0)
        try:
            mine = folder / "parts" / f"{jax.process_index():04d}"
            mine.mkdir(parents=True, exist_ok=True)
            held.append(lock(mine))
            parts = Parts.load(folder / "parts", size, fingerprint(identity))
            parts.lost = lost
            store = cls(folder, identity, held, parts)
            require_equal(f"{parts.rows()} finished rows", f"The processes see {folder} differently")
            return store
        except BaseException:
            for file in held:
                file.close()
            raise

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        for file in self._held:
            file.close()

    @property
    def finished(self) -> int:
        """Number of examples that are finished."""
        return int(self._finished.sum())

    def done(self) -> Int[np.ndarray, " done"]:
        """Return the numbers of the examples that are finished, ascending."""
        return np.flatnonzero(self._finished)

    def todo(self) -> Bool[np.ndarray, " size"]:
        """Return which examples are not finished: one byte for each example."""
        return ~self._finished

    @property
    def lost(self) -> int:
        """Number of rows in parts that were damaged on opening."""
        return self._parts.lost

    def contents(self) -> Iterator[pa.Table]:
        """Read the scored rows' `index, id, content` in order.

        A bounded number of rows is read at a time.

        Yields:
            Tables; none if the parts have no column `content`.
        """
        known = self._schema is not None and CONTENT in self._schema.names
        return self.windows(["id", CONTENT]) if known else iter(())

    def skipped(self) -> Int[np.ndarray, " skipped"]:
        """Return the numbers of the examples that could not be used, ascending."""
        parts = [part.indices() for part in self._parts.all() if part.kind == "skipped"]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))

    def forget(self, indices: Int[np.ndarray, " count"]) -> None:
        """Delete the rows of some examples, so that they are made again.

        Table and record are deleted too. All processes of a run call it together.
        """

        def drop() -> None:
            for name in (SCORES, RUN):
                (self.folder / name).unlink(missing_ok=True)
            kept = Distances.open(self.folder, fingerprint(self.identity))
            if kept is not None:
                kept.forget(indices)
            self._parts.forget(indices)

        first_only(drop)
        self._look()
        self._resumed = int(self._finished.sum())

    def bind(self, fitted: str) -> None:
        """Set the fitted curvature that scores are made with from now on.

        Args:
            fitted: Its digest.

        Raises:
            StoreError: The scores in the folder were made with another one, or the processes of this run have different
                ones.
        """
        require_equal(fitted, "The processes of this run have different fitted curvatures")
        others = {part.fitted for part in self._parts.all()} - {fitted}
        if others:
            raise StoreError(
                f"{self.folder} holds scores of another fitted curvature, and the curvature of this run differs from it "
                "(perhaps in rounding alone, on another number of devices or another machine). Run the command where it "
                "ran before, or choose another folder."
            )
        self._fitted = fitted

    def append(self, table: pa.Table) -> None:
        """Write one part's rows; they are on disk on return.

        Args:
            table: `index`, `id`, `score` (never null), any further columns of COLUMNS, other numbers, and `embedding` (a
                fixed-size list, which stays in the parts).

        Raises:
            ValueError: Columns are missing or differ from those of earlier parts, or an example is in the folder already.
            StoreError: Another run has taken the folder.
            FullDiskError: The disk is full.
        """
        if not table.num_rows:
            return
        missing = {"index", "id", "score"} - set(table.column_names)
        if missing:
            raise ValueError(f"a part has the columns index, id and score, got none of {', '.join(sorted(missing))}.")
        if table["score"].null_count:
            raise ValueError("a score is a number or NaN, got null; hand examples without a score to skip().")
        if self._schema is not None and not self._alike(table.schema):
            raise ValueError(f"all parts have one schema; got\n{table.schema}\nafter\n{self._schema}")
        self._add("scored", table)
        self._schema = table.schema

    def _alike(self, schema: pa.Schema) -> bool:
        """Test whether rows of a schema may follow the earlier ones.

        The embeddings of these may have been deleted.
        """
        assert self._schema is not None
        if EMBEDDING in self._schema.names or EMBEDDING not in schema.names:
            return schema.equals(self._schema)
        return schema.remove(schema.get_field_index(EMBEDDING)).equals(self._schema)

    def embedded(self) -> bool:
        """Return whether the embeddings of every scored row are in the folder."""
        return self._parts.embedded()

    def distances(self, measure: Callable[[], Iterable[Neighbours]]) -> Distances:
        """Return the nearest neighbours of every scored example, and their distances.

        Args:
            measure: Finds them from the embeddings of `windows`, in its order. It is not called if embeddings have been
                dropped: then the distances are those that were found before.
        """
        owner = fingerprint(self.identity)
        if not self.embedded():
            return Distances.open(self.folder, owner) or Distances.write(self.folder, owner, [])
        return Distances.write(self.folder, owner, measure())

    def drop_embeddings(self) -> None:
        """Delete all embeddings; the distances stay."""
        self._parts.drop_embeddings()

    def skip(self, rows: Iterable[Skipped]) -> None:
        """Write the examples that cannot be scored, with the reasons.

        Raises:
            ValueError: An example is in the folder already.
            StoreError: Another run has taken the folder.
            FullDiskError: The disk is full.
        """
        table = skipped_table(rows)
        if table.num_rows:
            self._add("skipped", table)

    def _add(self, kind: Kind, table: pa.Table) -> None:
        """Write the part of either kind."""
        self._refuse_lost_lock()
        indices = table["index"].to_numpy()
        outside = (indices < 0) | (indices >= len(self._finished))
        if outside.any():
            raise ValueError(f"examples are numbered 0…{len(self._finished) - 1}, got {indices[outside][:5].tolist()}.")
        repeated = self._finished[indices] | (np.bincount(indices, minlength=1)[indices] > 1)
        if repeated.any():
            raise ValueError(f"examples are stored once; got again {indices[repeated][:5].tolist()}.")
        now = time.monotonic()
        self._mine().add(kind, table, now - self._since, self._fitted)
        self._finished[indices] = True
        self._since = now

    def _refuse_lost_lock(self) -> None:
        """Check that no other run has taken the folder.

        It may have done so while this process stood still.

        Raises:
            StoreError: One has.
        """
        if any(held.lost for held in self._held):
            raise StoreError(
                f"Another run has taken {self.folder} while this process stood still for so long that it seemed to have "
                "ended. What was written before is kept; the other run continues from there."
            )

    def _mine(self) -> Manifest:
        """Return the parts of this process."""
        return self._parts.manifests[jax.process_index()]

    def rows(self) -> int:
        """Return the number of rows that this process has written.

        Those of earlier runs count too.
        """
        return sum(part.rows for part in self._mine().parts)

    def refresh(self, expected: int = 0) -> None:
        """Read again what the other processes have written.

        The first process calls it when all have finished.

        Args:
            expected: Number of rows that all processes have written. A shared file system may show an old state for a
                while: it is read again for LATE seconds.

        Raises:
            StoreError: It still shows fewer rows.
        """
        end = time.monotonic() + LATE
        self._look()
        while self._parts.rows() < expected:
            if time.monotonic() > end:
                raise StoreError(
                    f"{self.folder} shows {self._parts.rows()} finished rows and the processes wrote {expected}. Is it one "
                    "folder on a disk that all of them share? Repeat the command: nothing is lost."
                )
            time.sleep(1.0)
            self._look()

    def _look(self) -> None:
        """Read the lists of all processes."""
        lost = self._parts.lost
        self._parts = Parts.load(self.folder / "parts", len(self._finished), fingerprint(self.identity))
        self._parts.lost, self._finished, self._schema = lost, self._parts.finished(), self._parts.schema()

    def columns(self) -> list[str]:
        """Return the names of scored rows' columns; none without scored rows."""
        schema = self._parts.schema()
        return [] if schema is None else schema.names

    def windows(self, columns: list[str]) -> Iterator[pa.Table]:
        """Read `index` and some columns of scored rows in order.

        A bounded number of rows is read at a time.
        """
        return (table for table in self._parts.windows("scored", ["index", *columns]) if table.num_rows)

    def finish(
        self,
        attributes: pa.Table | None = None,
        extra: Extra = no_more,
        facts: Mapping[str, Plain] | None = None,
    ) -> Path:
        """Write `scores.parquet` and `run.json`, and return the path of the table.

        Args:
            attributes: The attributes of the source, one row for every example, in order.
            extra: Further columns of scored examples.
            facts: Further entries of `run.json`.

        Raises:
            StoreError: An example is in no part or in two, or none could be scored.
            FullDiskError: The disk is full.
        """
        self._parts.refuse_gaps()
        if self._schema is None:
            raise StoreError(f"None of the {len(self._finished)} examples could be read; there is nothing to score.")
        wall = self._parts.seconds() + time.monotonic() - self._since
        record = {"identity": self.identity, OWNER: fingerprint(self.identity), **(facts or {})}
        further = {"resumed": self._resumed, "recomputed": self._parts.lost}
        return write_result(self.folder, self._parts, self._schema, attributes, extra, record, further, wall)
