"""A scored batch as rows of a table, with what is the matter where something is."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from influence_ssl_jax.data.loader import LoadedBatch
from influence_ssl_jax.influence.scores import Columns

UNCONVERGED = 1e-2
"""A relative residual above which a solve is called unconverged."""


def table_of(loaded: LoadedBatch, columns: Columns) -> pa.Table:
    """The valid rows of a scored batch: `index, id`, the numbers, `reason, embedding`."""
    valid = loaded.valid
    found = Columns(*(np.asarray(column)[valid] for column in columns))
    reason = reasons(found)
    unusable = found.degenerate | ~np.isfinite(found.score)
    score = np.where(unusable, np.nan, found.score)
    width = found.embedding.shape[1]
    with np.errstate(over="ignore"):  # an embedding too large for float32 has its reason already
        flat = pa.array(found.embedding.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "index": pa.array(np.asarray(loaded.batch.index)[valid].astype(np.int64)),
            "id": pa.array([name for name, ok in zip(loaded.ids, valid, strict=True) if ok], pa.string()),
            "score": score.astype(np.float64),
            "score_se": np.where(unusable, np.nan, found.score_se).astype(np.float64),
            "alignment_loss": np.asarray(found.alignment_loss, np.float64),
            "gradient_norm": np.asarray(found.gradient_norm, np.float64),
            "pixel_variance": np.asarray(found.pixel_variance, np.float64),
            "reason": pa.array(reason, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    )


def reasons(found: Columns) -> list[str]:
    """Per example, what is the matter with its score; empty where nothing is."""

    def one(i: int) -> str:
        if not np.isfinite(found.embedding[i]).all():
            return "the network's embedding is not finite"
        if found.degenerate[i]:
            return "zero embedding: the cosine distance is undefined"
        if not np.isfinite(found.alignment_loss[i]):
            return "the alignment loss is not finite"
        if not np.isfinite(found.score[i]):
            return "the score is not finite: a gradient overflowed or the solve diverged"
        if found.residual[i] > UNCONVERGED:
            return f"unconverged solve: relative residual {found.residual[i]:.2g}"
        return ""

    return [one(i) for i in range(len(found.score))]


def embedding_matrix(column: pa.ChunkedArray) -> Float[np.ndarray, "examples width"]:
    """A column of fixed-size lists as a matrix."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
