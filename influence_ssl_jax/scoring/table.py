"""The table of scores, in memory and on disk: its columns, and how its rows are put together."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from influence_ssl_jax.data.source import Skipped

ERRORS = ("score_lo", "score_hi", "score_se_curvature", "score_first_half", "score_second_half")
"""Numbers of an example that some backends know of its score: see `scores.Columns`."""
IN_CURVATURE_SET = "in_curvature_set"
"""The column that marks the examples whose gradients are part of the curvature."""
BASELINES = ("alignment_loss", "gradient_norm", "pixel_variance", "knn_distance")
"""Columns that a score must be better than, in order."""
MEASUREMENTS = ("score", "score_se", *BASELINES)
"""Numbers that every example has, in order."""
CONTENT = "content"
"""16 bytes of BLAKE2b over what the image was read from (`data.source.content_digest`); null for a skipped example."""
COLUMNS = ("index", "id", *MEASUREMENTS, "reason", CONTENT)
"""The columns that every `scores.parquet` has."""
ORDER = ("index", "id", "score", "score_se", *ERRORS, *BASELINES, "reason", CONTENT)
"""The order of its first columns."""
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


def assemble_table(
    scored: pa.Table,
    skipped: pa.Table,
    extra: Mapping[str, Shaped[np.ndarray, " scored"]],
    attributes: pa.Table | None,
) -> pa.Table:
    """Scored and skipped rows in order of index, then the source's attributes.

    A skipped example's numbers are null; a score that is not finite keeps its value and has a reason. An attribute
    whose name is taken becomes `source_<name>`.
    """
    for name, values in extra.items():
        scored = scored.append_column(name, pa.array(values, pa.bool_() if values.dtype == bool else pa.float64()))
    if "reason" not in scored.column_names:
        scored = scored.append_column("reason", pa.nulls(scored.num_rows, pa.string()))
    finite = np.isfinite(scored["score"].to_numpy())
    given = scored["reason"].to_pylist()
    reasons = [said or (None if fine else NOT_FINITE) for said, fine in zip(given, finite, strict=True)]
    scored = scored.set_column(scored.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    table = pa.concat_tables([scored, skipped], promote_options="default").sort_by("index")
    further = [name for name in scored.column_names if name not in ORDER]
    table = table.select([*(name for name in ORDER if name in table.column_names), *further])
    if attributes is not None:
        for name in attributes.column_names:
            taken = name in table.column_names
            table = table.append_column(f"source_{name}" if taken else name, attributes[name])
    return table.combine_chunks()
