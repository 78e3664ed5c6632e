"""From parts to the finished table and its record, a window of examples at a time."""

import collections
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Real

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.store import score_table
from influence_ssl_jax.store.files import replacing, write_atomically
from influence_ssl_jax.store.parts import WINDOW, Parts

SCORES, RUN = "scores.parquet", "run.json"


def write_result(
    folder: Path,
    parts: Parts,
    schema: pa.Schema,
    attributes: pa.Table | None,
    extra: Mapping[str, Real[np.ndarray, " scored"]],
    record: Mapping[str, Plain],
    further: Mapping[str, int],
    wall: float,
) -> Path:
    """Write `scores.parquet`, then `run.json`, each whole or not at all; the bytes of the table depend on rows alone.

    Args:
        folder: Where to.
        parts: All rows.
        schema: Of the scored ones.
        attributes: Of the source.
        extra: Further columns, one value for every scored example in order.
        record: What `run.json` begins with.
        further: Counts beside those of the table.
        wall: Seconds that it took.
    """
    names = [name for name in schema.names if name != score_table.EMBEDDING]
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    counts: collections.Counter[str] = collections.Counter()
    writer: pq.ParquetWriter | None = None
    behind = 0
    with replacing(folder / SCORES) as temporary:
        for start in range(0, parts.size, WINDOW):
            scored = parts.window("scored", names, start)
            scored = scored if scored.num_rows else empty
            values = {name: column[behind : behind + scored.num_rows] for name, column in extra.items()}
            behind += scored.num_rows
            skipped = parts.window("skipped", ["index", "id", "reason"], start)
            skipped = skipped if skipped.num_rows else score_table.skipped_table([])
            known = attributes.slice(start, WINDOW) if attributes is not None else None
            table = score_table.assemble(scored, skipped, values, known)
            counts.update(score_table.counts(table))
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    run = {
        **record,
        "counts": {**counts, **further},
        "attributes": attributes.column_names if attributes is not None else [],
        "wall_seconds": wall,
    }
    write_atomically(folder / RUN, json.dumps(run, indent=2).encode())
    return folder / SCORES
