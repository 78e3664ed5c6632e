"""Write the finished table of scores and its record, and check them."""

import collections
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Shaped

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.scoring.table import EMBEDDING, assemble_table, skipped_table
from influence_ssl_jax.store.files import DamagedError, file_digest, read_sealed, replacing, write_sealed
from influence_ssl_jax.store.manifest import WINDOW, Parts

Extra: TypeAlias = Callable[[Int[np.ndarray, " some"]], Mapping[str, Shaped[np.ndarray, " some"]]]
"""From the numbers of some scored examples, in ascending order, to further columns of their rows."""


def no_more(_: Int[np.ndarray, " some"]) -> dict[str, Shaped[np.ndarray, " some"]]:
    """Return no further columns."""
    return {}


def renamed_attributes(columns: Sequence[str], attributes: pa.Table | None) -> dict[str, str]:
    """Return the attributes that the table holds under another name.

    The result leads from an attribute's own name to that one.
    """
    names = [] if attributes is None else attributes.column_names
    return {name: f"source_{name}" for name in names if f"source_{name}" in columns and f"source_{name}" not in names}


def count_outcomes(table: pa.Table) -> dict[str, int]:
    """Count the examples of each kind: `scored + nan + skipped = size`."""
    skipped = table["score"].null_count
    finite = int(np.isfinite(table["score"].to_numpy()).sum())
    return {"size": table.num_rows, "scored": finite, "nan": table.num_rows - skipped - finite, "skipped": skipped}


SCORES, RUN = "scores.parquet", "run.json"
FILES = "files"
"""The key of a record under which the SHA-256 of the files beside it stand, by name."""
OWNER, PARTS = "fingerprint", "parts"
"""The keys of a record for the fingerprint of the run, and for the digest of its parts."""
RUN_KEYS = (OWNER, PARTS, "counts", "identity")
"""Some keys of `run.json`."""


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
    """Write `scores.parquet`, then `run.json`, each whole or not at all.

    The bytes of the table depend on its rows alone. The record has a checksum of its own and holds that of the table.

    Args:
        folder: The folder of the run.
        parts: All rows.
        schema: The schema of the scored rows.
        attributes: The attributes of the source, one row for every example.
        extra: Further columns of scored examples.
        record: The first entries of `run.json`.
        further: Counts beside those of the table.
        wall: Duration of the run in seconds.

    Returns:
        The path of the table.

    Raises:
        StoreError: A part has changed since it was written.
        FullDiskError: The disk is full.
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
        "renamed": renamed_attributes(columns, attributes),
        "wall_seconds": wall,
        PARTS: parts.digest(),
        FILES: {SCORES: written},
    }
    write_sealed(folder / RUN, run)
    return folder / SCORES


def read_record(folder: Path, record: str, keys: Collection[str] = ()) -> dict[str, Plain]:
    """Read a record, and check the files beside it.

    They must be those that the record was written for.

    Args:
        folder: The folder of record and files.
        record: The name of the record.
        keys: Some keys of records of this kind.

    Raises:
        FileNotFoundError: The record or one of its files is absent.
        DamagedError: One of them has changed since it was written, or the record is of another kind.
    """
    content = read_sealed(folder / record)
    if not {FILES, *keys} <= content.keys():
        raise DamagedError(
            f"{folder / record} is not a record of this kind: it lacks entries that every such record has."
        )
    for name, digest in content[FILES].items():
        if file_digest(folder / name) != digest:
            raise DamagedError(f"{folder / name} is damaged, or is not the file that {record} was written for.")
    return content


def find_damage(folder: Path, owner: str, parts: Parts) -> str:
    """Return why table and record do not fit the parts.

    It is empty if they fit, or if neither file exists.

    Args:
        folder: The folder of the run.
        owner: Fingerprint of the run.
        parts: All rows.
    """
    if not (folder / RUN).exists() and not (folder / SCORES).exists():
        return ""
    try:
        record = read_record(folder, RUN, RUN_KEYS)
    except (FileNotFoundError, DamagedError) as error:
        return str(error)
    if record.get(OWNER) != owner:
        return f"{folder / RUN} is the record of another run."
    return "" if record.get(PARTS) == parts.digest() else f"{folder / RUN} is the record of other parts."
