"""Scores on disk while they are made: what is finished survives, what is not is made again, nothing is made twice."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Real, Shaped

from influence_ssl_jax.configuration import Plain, fingerprint
from influence_ssl_jax.data.source import Skipped
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store import score_table
from influence_ssl_jax.store.files import lock, write_atomically
from influence_ssl_jax.store.identity import claim, refuse_foreign
from influence_ssl_jax.store.manifest import Kind, Manifest, to_bytes

SCORES, RUN = "scores.parquet", "run.json"


class ScoreStore:
    """An output folder: parts while scores are made, `scores.parquet` and `run.json` when they all are.

    The folder belongs to one identity (configuration, parameters, data, versions). A part is appended whole or not at
    all and has a checksum; a part that fails it is made again. One process at a time holds the folder.

        with ScoreStore.open(folder, identity, size=len(source)) as store:
            for batch in batches(source, ..., indices=np.setdiff1d(np.arange(len(source)), store.done())):
                store.append(table)
                store.skip(batch.skipped)
            store.finish(source.attributes())
    """

    def __init__(self, folder: Path, identity: Plain, size: int, held: TextIO, manifest: Manifest) -> None:
        self.folder = folder
        self._identity = identity
        self._held = held
        self._manifest = manifest
        self._finished = np.zeros(size, bool)
        self._since = time.monotonic()
        for part in manifest.parts:
            self._finished[manifest.read(part, ["index"])["index"].to_numpy()] = True
        self._resumed = int(self._finished.sum())
        self._schema = next((manifest.read(p).schema for p in manifest.parts if p.kind == "scored"), None)

    @classmethod
    def open(cls, folder: Path, identity: Plain, size: int) -> "ScoreStore":
        """Begin in a new or empty folder, or go on where the same identity left off.

        Args:
            folder: The output folder; made where it is missing.
            identity: JSON of everything that the scores depend on.
            size: Number of examples of the source.

        Raises:
            StoreError: The folder holds another run (the differences are listed), something else, or is in use.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} is a file; the output is a folder. Choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign(folder)
        held = lock(folder)
        try:
            identity = claim(folder, {"size": size, **identity})
            store = cls(folder, identity, size, held, Manifest.load(folder / "parts"))
        except BaseException:
            held.close()
            raise
        if len(store.done()) < size:  # an earlier result that is no longer whole must not pass for one
            for name in (SCORES, RUN):
                (folder / name).unlink(missing_ok=True)
        return store

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        self._held.close()

    def done(self) -> Int[np.ndarray, " done"]:
        """Numbers of the examples that need no more work, ascending."""
        return np.flatnonzero(self._finished)

    def append(self, table: pa.Table) -> None:
        """Keep the rows of one part; when this returns they are on disk.

        Args:
            table: `index`, `id`, `score` (never null), any further columns of COLUMNS, extra numbers, `embedding` (a
                fixed-size list, kept in the parts alone). Whole batches, so that a resumed run computes the same ones.

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
        if self._schema is not None and not table.schema.equals(self._schema):
            raise ValueError(f"all parts have one schema; got\n{table.schema}\nafter\n{self._schema}")
        self._add("scored", table)
        self._schema = table.schema

    def skip(self, rows: Iterable[Skipped]) -> None:
        """Keep the examples that cannot be scored, with the reason.

        Raises:
            ValueError: An example is there already.
        """
        table = score_table.skipped_table(rows)
        if table.num_rows:
            self._add("skipped", table)

    def _add(self, kind: Kind, table: pa.Table) -> None:
        indices = table["index"].to_numpy()
        outside = (indices < 0) | (indices >= len(self._finished))
        if outside.any():
            raise ValueError(f"examples are numbered 0…{len(self._finished) - 1}, got {indices[outside][:5].tolist()}.")
        repeated = self._finished[indices] | (np.bincount(indices, minlength=len(self._finished))[indices] > 1)
        if repeated.any():
            raise ValueError(f"examples are stored once; got again {indices[repeated][:5].tolist()}.")
        now = time.monotonic()
        self._manifest.add(kind, table, now - self._since)
        self._finished[indices] = True
        self._since = now

    def column(self, name: str) -> Shaped[np.ndarray, "scored *width"]:
        """A column of all scored examples in order of index; a fixed-size list becomes a matrix."""
        table = self._rows("scored", ["index", name]).sort_by("index")
        values = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(values.type):
            return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
        return values.to_numpy(zero_copy_only=False)

    def _rows(self, kind: Kind, columns: list[str]) -> pa.Table:
        tables = [self._manifest.read(part, columns) for part in self._manifest.parts if part.kind == kind]
        return pa.concat_tables(tables) if tables else score_table.skipped_table([])

    def finish(
        self,
        attributes: pa.Table | None = None,
        extra: Mapping[str, Real[np.ndarray, " scored"]] | None = None,
        facts: Mapping[str, Plain] | None = None,
    ) -> Path:
        """Write `scores.parquet` and `run.json`, and return the former.

        Args:
            attributes: The source's, one row for every example in order.
            extra: Further columns, one value for every scored example in order of index (`column` has that order).
            facts: What `run.json` records beside identity, counts and wall time.

        Raises:
            StoreError: Examples are missing, or none could be scored.
        """
        missing = np.flatnonzero(~self._finished)
        if len(missing):
            raise StoreError(f"{len(missing)} of {len(self._finished)} examples have no score yet, {missing[0]} first.")
        if self._schema is None:
            raise StoreError(f"None of the {len(self._finished)} examples could be read; there is nothing to score.")
        scored = self._rows("scored", [name for name in self._schema.names if name != score_table.EMBEDDING])
        table = score_table.assemble(
            scored.sort_by("index"), self._rows("skipped", ["index", "id", "reason"]), extra or {}, attributes
        )
        write_atomically(self.folder / SCORES, to_bytes(table))
        run = {
            "identity": self._identity,
            "fingerprint": fingerprint(self._identity),
            **(facts or {}),
            "counts": {
                **score_table.counts(table),
                "resumed": self._resumed,
                "recomputed": self._manifest.damaged,
            },
            "attributes": attributes.column_names if attributes is not None else [],
            "wall_seconds": sum(part.seconds for part in self._manifest.parts) + time.monotonic() - self._since,
        }
        write_atomically(self.folder / RUN, json.dumps(run, indent=2).encode())
        return self.folder / SCORES
