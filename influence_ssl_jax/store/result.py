"""Write the finished table of scores and its record."""

import collections
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.scoring.table import EMBEDDING, assemble_table, skipped_table
from influence_ssl_jax.store.files import replacing
from influence_ssl_jax.store.manifest import WINDOW, Parts
from influence_ssl_jax.store.sealed import DamagedError, file_digest, read_sealed, write_sealed

Extra: TypeAlias = Callable[[Int[np.ndarray, " some"]], Mapping[str, Shaped[np.ndarray, " some"]]]
"""Further columns of some scored examples, by the numbers of the examples, which ascend."""


def no_more(_: Int[np.ndarray, " some"]) -> dict[str, Shaped[np.ndarray, " some"]]:
    """Return no further columns."""
    return {}


def renamed(columns: Sequence[str], attributes: pa.Table | None) -> dict[str, str]:
    """The columns of the table that hold an attribute under another name, by the attribute's own name."""
    names = [] if attributes is None else attributes.column_names
    return {name: f"source_{name}" for name in names if f"source_{name}" in columns and f"source_{name}" not in names}


def count_outcomes(table: pa.Table) -> dict[str, int]:
    """How many examples there are, and of each kind: `scored + nan + skipped = size`."""
    skipped = table["score"].null_count
    finite = int(np.isfinite(table["score"].to_numpy()).sum())
    return {"size": table.num_rows, "scored": finite, "nan": table.num_rows - skipped - finite, "skipped": skipped}


SCORES, RUN = "scores.parquet", "run.json"
FILES = "files"
"""The key of a record that holds the SHA-256 of the files beside it, by name."""
OWNER, PARTS = "fingerprint", "parts"
"""The keys that say of which run a record is, and of which parts."""


def write_result(
    folder: Path,
    parts: Parts,
    schema: pa.Schema,
    attributes: pa.Table | None,
    extra: Extra,
    record: Mapping[str, Plain],
    further: Mapping[str, int],
    wall: float,
) -> Path:
    """Write `scores.parquet`, then `run.json`, each whole or not at all; the bytes of the table depend on rows alone.

    The record has a checksum of its own and holds that of the table.

    Args:
        folder: Where to.
        parts: All rows.
        schema: Of the scored ones.
        attributes: Of the source.
        extra: Further columns of scored examples.
        record: What `run.json` begins with.
        further: Counts beside those of the table.
        wall: Seconds that it took.
    """
    names = [name for name in schema.names if name != EMBEDDING]
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    counts: collections.Counter[str] = collections.Counter()
    writer: pq.ParquetWriter | None = None
    columns = list[str]()
    both = zip(parts.windows("scored", names), parts.windows("skipped", ["index", "id", "reason"]), strict=True)
    with replacing(folder / SCORES) as temporary:
        for number, (scored, skipped) in enumerate(both):
            scored = scored if scored.num_rows else empty
            skipped = skipped if skipped.num_rows else skipped_table([])
            known = attributes.slice(number * WINDOW, WINDOW) if attributes is not None else None
            table = assemble_table(scored, skipped, extra(scored["index"].to_numpy()), known)
            counts.update(count_outcomes(table))
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
            columns = table.column_names
        if writer is not None:
            writer.close()
        written = file_digest(temporary)
    run = {
        **record,
        "counts": {**counts, **further},
        "attributes": attributes.column_names if attributes is not None else [],
        "renamed": renamed(columns, attributes),
        "wall_seconds": wall,
        PARTS: parts.digest(),
        FILES: {SCORES: written},
    }
    write_sealed(folder / RUN, run)
    return folder / SCORES


def recorded(folder: Path, record: str) -> dict[str, Plain]:
    """Read a record whose files are the ones that it was written beside.

    Args:
        folder: Where record and files are.
        record: The record's name.

    Raises:
        FileNotFoundError: The record or one of its files is not there.
        DamagedError: One of them is not what was written.
    """
    content = read_sealed(folder / record)
    for name, digest in content.get(FILES, {}).items():
        if file_digest(folder / name) != digest:
            raise DamagedError(f"{folder / name} is damaged, or is not the file that {record} was written for.")
    return content


def damage(folder: Path, owner: str, parts: Parts) -> str:
    """Say why the table and its record are not those of the parts; empty if they are, or if neither file exists.

    Args:
        folder: Where they are.
        owner: Fingerprint of the run.
        parts: All rows.
    """
    if not (folder / RUN).exists() and not (folder / SCORES).exists():
        return ""
    try:
        record = recorded(folder, RUN)
    except (FileNotFoundError, DamagedError) as error:
        return str(error)
    if record.get(OWNER) != owner:
        return f"{folder / RUN} is the record of another run."
    return "" if record.get(PARTS) == parts.digest() else f"{folder / RUN} is the record of other parts."
