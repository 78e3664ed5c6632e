"""Define the columns of the table of scores, and assemble its rows."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.scoring.neighbours import Neighbours

ERRORS = ("score_lo", "score_hi", "score_se_curvature", "score_first_half", "score_second_half")
"""Errors and bounds of a score that some backends know: see `scores.Columns`."""
IN_CURVATURE_SET = "in_curvature_set"
"""The column that marks the examples whose gradients are part of the curvature."""
BASELINES = ("alignment_loss", "gradient_norm", "pixel_variance", "knn_distance")
"""The simple measures beside the score, in order."""
MEASUREMENTS = ("score", "score_se", *BASELINES)
"""The numbers of every example, in order."""
LIGHT = ("brightness", "contrast")
"""Mean and standard deviation of the luminance, with which faces or photographs are compared."""
NEAREST = "nearest_index"
"""The index of the example with the nearest embedding, or null: `knn_distance` away if one neighbour is requested."""
CONTENT = "content"
"""The column of digests: 16 bytes of BLAKE2b of what an image was read from (`data.examples.content_digest`), or null."""
COLUMNS = ("index", "id", *MEASUREMENTS, *LIGHT, NEAREST, "reason", CONTENT)
"""The columns of every `scores.parquet`."""
ORDER = ("index", "id", "score", "score_se", *ERRORS, *BASELINES, *LIGHT, NEAREST, "reason", CONTENT)
"""The order of its first columns."""
EMBEDDING = "embedding"
"""A column of fixed-size lists that parts may have, and `scores.parquet` does not."""
NOT_FINITE = "the score is not finite"


def neighbour_columns(neighbours: Neighbours) -> dict[str, Shaped[np.ndarray, " scored"]]:
    """Return the columns that describe the nearest neighbours of some examples."""
    return {"knn_distance": neighbours.distance, NEAREST: neighbours.nearest}


def skipped_table(rows: Iterable[Skipped]) -> pa.Table:
    """Return a table of the examples without a score, with their reasons."""
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
    """Join scored and skipped rows by index, with the source's attributes.

    A skipped example has nulls; a score that is not finite keeps its value and has a reason. An attribute whose name is
    taken becomes `source_<name>`.

    Args:
        scored: The scored rows.
        skipped: The skipped examples (`skipped_table`).
        extra: Further columns of the scored rows, by name; a negative integer becomes null.
        attributes: Attributes of all examples of the source, or None.
    """
    for name, values in extra.items():
        if np.issubdtype(values.dtype, np.integer):
            column = pa.array(values, pa.int64(), mask=values < 0)
        else:
            column = pa.array(values, pa.bool_() if values.dtype == bool else pa.float64())
        scored = scored.append_column(name, column)
    if "reason" not in scored.column_names:
        scored = scored.append_column("reason", pa.nulls(scored.num_rows, pa.string()))
    finite = np.isfinite(scored["score"].to_numpy())
    present = scored["reason"].to_pylist()
    reasons = [reason or (None if fine else NOT_FINITE) for reason, fine in zip(present, finite, strict=True)]
    scored = scored.set_column(scored.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    table = pa.concat_tables([scored, skipped], promote_options="default").sort_by("index")
    further = [name for name in scored.column_names if name not in ORDER]
    table = table.select([*(name for name in ORDER if name in table.column_names), *further])
    if attributes is not None:
        for name in attributes.column_names:
            taken = name in table.column_names
            table = table.append_column(f"source_{name}" if taken else name, attributes[name])
    return table.combine_chunks()
