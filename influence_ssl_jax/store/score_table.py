"""What `scores.parquet` holds: one row for every example of the source, in its order."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Real

from influence_ssl_jax.data.source import Skipped

BASELINES = ("alignment_loss", "gradient_norm", "pixel_variance", "knn_distance")
"""Columns that a score must be better than, in order."""
MEASUREMENTS = ("score", "score_se", *BASELINES)
"""Numbers of an example, in order."""
COLUMNS = ("index", "id", *MEASUREMENTS, "reason")
"""The columns that every `scores.parquet` begins with."""
EMBEDDING = "embedding"
"""A column of fixed-size lists that parts may have and `scores.parquet` has not."""
NOT_FINITE = "the score is not finite"


def skipped_table(rows: Iterable[Skipped]) -> pa.Table:
    """Examples without a score, and why."""
    rows = list(rows)
    return pa.table(
        {
            "index": pa.array([row.index for row in rows], pa.int64()),
            "id": pa.array([row.id for row in rows], pa.string()),
            "reason": pa.array([row.reason for row in rows], pa.string()),
        }
    )


def assemble(
    scored: pa.Table,
    skipped: pa.Table,
    extra: Mapping[str, Real[np.ndarray, " scored"]],
    attributes: pa.Table | None,
) -> pa.Table:
    """Scored and skipped rows in order of index, then the source's attributes.

    A skipped example's numbers are null; a score that is not finite keeps its value and has a reason. An attribute
    whose name is taken becomes `source_<name>`.
    """
    for name, values in extra.items():
        scored = scored.append_column(name, pa.array(values, pa.float64()))
    if "reason" not in scored.column_names:
        scored = scored.append_column("reason", pa.nulls(scored.num_rows, pa.string()))
    finite = np.isfinite(scored["score"].to_numpy())
    given = scored["reason"].to_pylist()
    reasons = [said or (None if fine else NOT_FINITE) for said, fine in zip(given, finite, strict=True)]
    scored = scored.set_column(scored.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    table = pa.concat_tables([scored, skipped], promote_options="default").sort_by("index")
    further = [name for name in scored.column_names if name not in COLUMNS]
    table = table.select([*(name for name in COLUMNS if name in table.column_names), *further])
    if attributes is not None:
        for name in attributes.column_names:
            taken = name in table.column_names
            table = table.append_column(f"source_{name}" if taken else name, attributes[name])
    return table.combine_chunks()


def counts(table: pa.Table) -> dict[str, int]:
    """How many examples there are, and of each kind: `scored + nan + skipped = size`."""
    skipped = table["score"].null_count
    finite = int(np.isfinite(table["score"].to_numpy()).sum())
    return {"size": table.num_rows, "scored": finite, "nan": table.num_rows - skipped - finite, "skipped": skipped}
