"""Keep scores as they are made, and resume from them."""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from influence_ssl_jax.configuration import Plain, fingerprint
from influence_ssl_jax.data.source import Skipped
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.parallel import first_only, require_equal
from influence_ssl_jax.scoring.table import CONTENT, EMBEDDING, skipped_table
from influence_ssl_jax.store.files import LOCK, Held, holder_of, living, lock, write_atomically
from influence_ssl_jax.store.identity import claim, refuse_disagreement, refuse_foreign
from influence_ssl_jax.store.manifest import Kind, Manifest, Parts, to_bytes, writers
from influence_ssl_jax.store.result import FILES, RUN, SCORES, damage, recorded, write_result
from influence_ssl_jax.store.sealed import DamagedError, write_sealed


def enter(folder: Path, identity: Plain, size: int) -> tuple[Held, int]:
    """Hold the folder for the whole run and check every part in it: the lock, and how many listed rows are lost.

    A table or a record that is damaged, deleted or of other parts is removed: it is made again from the parts.

    Raises:
        StoreError: The folder is a file, is in use, or holds another run or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; the output is a folder. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign(folder)
    held = lock(folder)
    try:
        claim(folder, identity)
        refuse_writers(folder / "parts")
        parts = Parts.load(folder / "parts", size, fingerprint(identity))
        parts.check()
        if not parts.finished().all() or damage(folder):
            for name in (SCORES, RUN):  # an earlier result that is no longer whole must not pass for one
                (folder / name).unlink(missing_ok=True)
    except BaseException:
        held.close()
        raise
    return held, parts.lost


def refuse_writers(parts: Path) -> None:
    """Check that no process of an earlier run still writes its parts; the locks of those that have ended are cleared.

    Raises:
        StoreError: One does.
    """
    parts.mkdir(exist_ok=True)
    locks = [each / LOCK for each in writers(parts) if (each / LOCK).exists()]
    alive = living(locks)
    if alive:
        raise StoreError(
            f"A process of an earlier run still writes {alive[0].parent}. Wait for it, end it, or choose another folder."
        )
    for each in locks:
        if holder_of(each).get("host") != socket.gethostname():
            os.truncate(each, 0)  # it was watched, and has ended
        lock(each.parent).close()


DISTANCES, DISTANCES_RECORD = "distances.parquet", "distances.json"
"""Distances to nearest neighbours, where the embeddings that they were found by have been dropped."""
LATE = 90.0
"""Seconds for which a shared file system may show what a folder was before."""


class ScoreStore:
    """An output folder: parts while scores are made, `scores.parquet` and `run.json` when they all are.

    The folder belongs to one identity (configuration, parameters, data, versions). A part is appended whole or not at
    all and has a checksum; a part that fails it is made again. One run at a time holds the folder; each of its
    processes writes parts of its own, and the first one puts them together.

        with ScoreStore.open(folder, identity, size=len(source)) as store:
            store.bind(digest)
            for batch in …(store.todo()):
                store.append(table)
                store.skip(batch.skipped)
            store.finish(source.attributes())
    """

    def __init__(self, folder: Path, identity: Plain, held: list[Held], parts: Parts) -> None:
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
        """Begin in a new or empty folder, or go on where the same identity left off; all processes of a run together.

        Args:
            folder: The output folder; made where it is missing.
            identity: JSON of everything that the scores depend on.
            size: Number of examples of the source.

        Raises:
            StoreError: The folder holds another run (the differences are listed), something else, or is in use; or the
                processes of this run were given different work.
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
        """Let another run have the folder."""
        for file in self._held:
            file.close()

    def done(self) -> Int[np.ndarray, " done"]:
        """Numbers of the examples that need no more work, ascending."""
        return np.flatnonzero(self._finished)

    def todo(self) -> Int[np.ndarray, " todo"]:
        """Numbers of the others."""
        return np.flatnonzero(~self._finished)

    @property
    def lost(self) -> int:
        """Rows of parts that were found damaged when the folder was opened."""
        return self._parts.lost

    def contents(self) -> Iterator[pa.Table]:
        """`index, id, content` of the scored rows in order, a bounded number at a time; nothing where parts have none."""
        known = self._schema is not None and CONTENT in self._schema.names
        return self.windows(["id", CONTENT]) if known else iter(())

    def skipped(self) -> Int[np.ndarray, " skipped"]:
        """Numbers of the examples that could not be used, ascending."""
        parts = [part.indices() for part in self._parts.all() if part.kind == "skipped"]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))

    def forget(self, indices: Int[np.ndarray, " count"]) -> None:
        """Drop the rows of some examples, so that they are made again; all processes of a run together.

        The table and the record go too: they are made again from what there is then.
        """

        def drop() -> None:
            for name in (SCORES, RUN):
                (self.folder / name).unlink(missing_ok=True)
            kept = self._distances()
            if kept is not None:
                self._keep_distances(kept.filter(~np.isin(kept["index"].to_numpy(), indices)))
            self._parts.forget(indices)

        first_only(drop)
        self._look()
        self._resumed = int(self._finished.sum())

    def bind(self, fitted: str) -> None:
        """Say with which fitted curvature scores are made from here on, by its digest.

        Raises:
            StoreError: Those that are there were made with another, or the processes of this run have different ones.
        """
        require_equal(fitted, "The processes of this run have different fitted curvatures")
        others = {part.fitted for part in self._parts.all()} - {fitted}
        if others:
            raise StoreError(
                f"{self.folder} holds scores of another fitted curvature, and this one, fitted anew, differs from it (it "
                "may differ in rounding alone, on another number of devices or another machine). Run the command where "
                "it ran before, or choose another folder."
            )
        self._fitted = fitted

    def append(self, table: pa.Table) -> None:
        """Keep the rows of one part; when this returns they are on disk.

        Args:
            table: `index`, `id`, `score` (never null), any further columns of COLUMNS, extra numbers, `embedding` (a
                fixed-size list, kept in the parts alone).

        Raises:
            ValueError: Columns are missing or differ from the parts before, or an example is there already.
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
        """Whether rows of a schema may follow those that are there, whose embeddings may have been dropped."""
        assert self._schema is not None
        if EMBEDDING in self._schema.names or EMBEDDING not in schema.names:
            return schema.equals(self._schema)
        return schema.remove(schema.get_field_index(EMBEDDING)).equals(self._schema)

    def embedded(self) -> bool:
        """Whether the embeddings of every scored row are in the folder."""
        return self._parts.embedded()

    def drop_embeddings(self, distance: Shaped[np.ndarray, " scored"]) -> None:
        """Delete all embeddings, once the distances that they are kept for are in a file of their own.

        Args:
            distance: One for every scored example in order of index.
        """
        index = np.concatenate([table["index"].to_numpy() for table in self.windows([])])
        self._keep_distances(pa.table({"index": index, "distance": distance}))
        self._parts.drop_embeddings()

    def kept_distances(self) -> Shaped[np.ndarray, " scored"]:
        """The distances that were found before embeddings were dropped; NaN of examples scored since, or if damaged."""
        found, kept = np.full(len(self._finished), np.nan), self._distances()
        if kept is not None:
            found[kept["index"].to_numpy()] = kept["distance"].to_numpy()
        return np.concatenate([found[table["index"].to_numpy()] for table in self.windows([])])

    def _distances(self) -> pa.Table | None:
        """What is in the file of distances; None where there is none, or it is damaged."""
        try:
            recorded(self.folder, DISTANCES_RECORD)
        except (DamagedError, FileNotFoundError):
            return None
        return pq.read_table(self.folder / DISTANCES)

    def _keep_distances(self, table: pa.Table) -> None:
        """Write the file of distances and the record of its checksum."""
        digest = write_atomically(self.folder / DISTANCES, to_bytes(table))
        write_sealed(self.folder / DISTANCES_RECORD, {FILES: {DISTANCES: digest}})

    def skip(self, rows: Iterable[Skipped]) -> None:
        """Keep the examples that cannot be scored, with the reason.

        Raises:
            ValueError: An example is there already.
        """
        table = skipped_table(rows)
        if table.num_rows:
            self._add("skipped", table)

    def _add(self, kind: Kind, table: pa.Table) -> None:
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

    def _mine(self) -> Manifest:
        return self._parts.manifests[jax.process_index()]

    def rows(self) -> int:
        """Rows that this process has written, in this run and before."""
        return sum(part.rows for part in self._mine().parts)

    def refresh(self, expected: int = 0) -> None:
        """Look again at what the other processes have written; for the first one, when all are through.

        Args:
            expected: Rows that they say they wrote. A shared file system may show old folders for a while: it is asked
                again for LATE seconds.

        Raises:
            StoreError: It still does not show as many.
        """
        end = time.monotonic() + LATE
        self._look()
        while self._parts.rows() < expected:
            if time.monotonic() > end:
                raise StoreError(
                    f"{self.folder} shows {self._parts.rows()} finished rows and the processes wrote {expected}. Is it one "
                    "folder on a disk that all of them share? Give the same command again: nothing is lost."
                )
            time.sleep(1.0)
            self._look()

    def _look(self) -> None:
        lost = self._parts.lost
        self._parts = Parts.load(self.folder / "parts", len(self._finished), fingerprint(self.identity))
        self._parts.lost, self._finished, self._schema = lost, self._parts.finished(), self._parts.schema()

    def columns(self) -> list[str]:
        """What is known of scored rows; nothing where none is scored."""
        schema = self._parts.schema()
        return [] if schema is None else schema.names

    def windows(self, columns: list[str]) -> Iterator[pa.Table]:
        """Scored rows in order of index, a bounded number at a time."""
        return (table for table in self._parts.windows("scored", ["index", *columns]) if table.num_rows)

    def finish(
        self,
        attributes: pa.Table | None = None,
        extra: Mapping[str, Shaped[np.ndarray, " scored"]] | None = None,
        facts: Mapping[str, Plain] | None = None,
    ) -> Path:
        """Write `scores.parquet` and `run.json`, and return the former.

        Args:
            attributes: The source's, one row for every example in order.
            extra: Further columns, one value for every scored example in order of index (`windows` has that order).
            facts: What `run.json` records beside identity, counts and wall time.

        Raises:
            StoreError: Examples are missing or in two parts, or none could be scored.
        """
        self._parts.refuse_gaps()
        if self._schema is None:
            raise StoreError(f"None of the {len(self._finished)} examples could be read; there is nothing to score.")
        wall = self._parts.seconds() + time.monotonic() - self._since
        record = {"identity": self.identity, "fingerprint": fingerprint(self.identity), **(facts or {})}
        further = {"resumed": self._resumed, "recomputed": self._parts.lost}
        return write_result(self.folder, self._parts, self._schema, attributes, extra or {}, record, further, wall)
