"""Score a data set batch by batch, into tables."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from influence_ssl_jax.data.examples import OpenSource, Skipped
from influence_ssl_jax.data.loader import LoadedBatch, Reading, batches, time_waiting
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.parallel import split
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.scoring.neighbours import find_neighbours
from influence_ssl_jax.scoring.scores import Columns, Scorer, Scoring
from influence_ssl_jax.scoring.table import (
    ERRORS,
    IN_CURVATURE_SET,
    LIGHT,
    assemble_table,
    neighbour_columns,
    skipped_table,
)

UNCONVERGED = 1e-2
"""Relative residual above which a solve is called unconverged."""
UNRESOLVED = "the views agree to rounding: the score is zero or rounding noise"
"""The reason of a score that is only the rounding error of equal views, such as those of a blank image."""


def to_table(loaded: LoadedBatch, columns: Columns) -> pa.Table:
    """Return the valid rows of a scored batch: `index, id`, the numbers, `reason, content, embedding`.

    `ERRORS` are among the numbers if the backend knows them.
    """
    valid = loaded.valid
    numbers: Columns = jax.tree.map(lambda column: np.asarray(column)[valid], columns)
    reason = explain_rows(numbers)
    unusable = numbers.degenerate | ~np.isfinite(numbers.score)
    score = np.where(unusable, np.nan, numbers.score)
    width = numbers.embedding.shape[1]
    with np.errstate(over="ignore"):  # `explain_rows` reports an embedding that is too large for float32
        flat = pa.array(numbers.embedding.astype(np.float32).reshape(-1))
    return pa.table(
        {
            "index": pa.array(np.asarray(loaded.batch.index)[valid].astype(np.int64)),
            "id": pa.array([name for name, ok in zip(loaded.ids, valid, strict=True) if ok], pa.string()),
            "score": score.astype(np.float64),
            "score_se": np.where(unusable, np.nan, numbers.score_se).astype(np.float64),
            **{
                name: np.where(unusable, np.nan, getattr(numbers, name)).astype(np.float64)
                for name in ERRORS
                if getattr(numbers, name) is not None
            },
            **{
                name: np.asarray(getattr(numbers, name), np.float64)
                for name in ("alignment_loss", "gradient_norm", "pixel_variance", *LIGHT)
            },
            "reason": pa.array(reason, pa.string()),
            "content": pa.array([c for c, ok in zip(loaded.contents, valid, strict=True) if ok], pa.binary(16)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    )


def explain_rows(columns: Columns) -> list[str]:
    """Return what is wrong with the score of each example.

    It is empty if nothing is.
    """

    def one(i: int) -> str:
        if not np.isfinite(columns.embedding[i]).all():
            return "the network's embedding is not finite"
        if columns.degenerate[i]:
            return "zero embedding: the cosine distance is undefined"
        if not np.isfinite(columns.alignment_loss[i]):
            return "the alignment loss is not finite"
        if columns.unresolved[i]:
            return UNRESOLVED
        if not np.isfinite(columns.score[i]):
            return "the score is not finite: a gradient overflowed or the solve diverged"
        if columns.residual[i] > UNCONVERGED:
            return f"unconverged solve: relative residual {columns.residual[i]:.2g}"
        return ""

    return [one(i) for i in range(len(columns.score))]


def embedding_matrix(column: pa.ChunkedArray) -> Float[np.ndarray, "examples width"]:
    """Return a column of fixed-size lists as a matrix."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


IN_FLIGHT = 2
"""Number of batches that run on the devices before the host reads the numbers of the oldest one."""


class Scored(NamedTuple):
    """A scored batch.

    Attributes:
        table: The rows of its examples.
        skipped: The examples that could not be read.
    """

    table: pa.Table
    skipped: tuple[Skipped, ...]


def stream(
    scorer: Scorer,
    source: OpenSource,
    transform: ToInput,
    indices: Int[np.ndarray, " count"] | Bool[np.ndarray, " examples"] | None = None,
    mesh: Mesh | None = None,
    spent: defaultdict[str, float] | None = None,
    read: Reading | None = None,
) -> Iterator[Scored]:
    """Score examples of a source, a batch at a time.

    Example `i` is always computed in row `i mod batch_size` of a batch of its neighbours, whichever examples are scored
    with it: an interrupted run that continues gives the same bits as an uninterrupted one. Decoding, transfer and
    computation overlap. Columns:
    `index, id, score, score_se, alignment_loss, gradient_norm, pixel_variance, brightness, contrast, reason, content,
    embedding`. `reason` is empty for a good score and says otherwise what is wrong; without a number, the score is NaN.

    Args:
        scorer: The fitted scorer; with a mesh, it is on every device of the mesh.
        source: The examples.
        transform: The transform of an image to the input.
        indices: Which examples: their numbers in the wanted order, or a truth value for every example; all if None.
        mesh: Devices of this process; each scores `batch_size` examples at a time. None is the default device.
        spent: Receives the seconds that the host waited for `images` and for the `device`.
        read: Reads examples of the source as inputs; None reads them for this call alone.

    Yields:
        The scored batches, in order.
    """
    spent = defaultdict(float) if spent is None else spent
    size = scorer.batch_size
    devices = 1 if mesh is None else mesh.size
    chosen = np.ones(len(source), bool) if indices is None else indices
    order = slots_of(chosen, size, devices) if chosen.dtype == bool else place_in_slots(chosen, size)
    key = scorer.settings.key
    place = jax.device_put if mesh is None else partial(split, mesh=mesh)
    pending: deque[tuple[LoadedBatch, Columns]] = deque()
    for loaded in time_waiting(batches(source, transform, size * devices, key, order, place=place, read=read), spent):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            pending.append((loaded, scorer(loaded.batch)))
        if len(pending) > IN_FLIGHT:
            yield _collect(*pending.popleft(), spent)
    while pending:
        yield _collect(*pending.popleft(), spent)


def place_in_slots(indices: Int[np.ndarray, " count"], size: int) -> Int[np.ndarray, " rows"]:
    """Place every index in row `i mod size` of batch `i // size`.

    −1 fills the other rows. Batches are in the order in which `indices` names them first.

    Args:
        indices: Indices of examples.
        size: Rows of a batch.

    Examples:
        >>> import numpy as np
        >>> place_in_slots(np.asarray([6, 1]), 4).tolist()
        [-1, -1, 6, -1, -1, 1, -1, -1]
    """
    numbers, first = np.unique(indices // size, return_index=True)
    position = np.empty(len(numbers), np.int64)
    position[np.argsort(first)] = np.arange(len(numbers))
    rows = np.full((len(numbers), size), -1, np.int64)
    rows[position[np.searchsorted(numbers, indices // size)], indices % size] = indices
    return rows.reshape(-1)


def slots_of(chosen: Bool[np.ndarray, " examples"], size: int, together: int) -> Iterator[Int[np.ndarray, " rows"]]:
    """Yield the slots of the chosen examples, some batches at a time.

    They are what `place_in_slots` returns, in order, for `together` batches at a time.

    Batches without a chosen example are left out. Of each example, one byte is in memory.

    Args:
        chosen: Whether each example is chosen.
        size: Rows of a batch.
        together: Batches whose rows are yielded at a time.

    Examples:
        >>> import numpy as np
        >>> [rows.tolist() for rows in slots_of(np.asarray([False, True, False, False, True]), 2, 1)]
        [[-1, 1], [4, -1]]
    """
    numbers = find_batches(chosen, size)
    for start in range(0, len(numbers), together):
        rows = (numbers[start : start + together, None] * size + np.arange(size)[None]).reshape(-1)
        here = (rows < len(chosen)) & chosen[np.minimum(rows, len(chosen) - 1)]
        yield np.where(here, rows, -1)


def find_batches(chosen: Bool[np.ndarray, " examples"], size: int) -> Int[np.ndarray, " batches"]:
    """Return the numbers of the batches that hold a chosen example, ascending.

    Args:
        chosen: Whether each example is chosen.
        size: Rows of a batch.

    Examples:
        >>> import numpy as np
        >>> find_batches(np.asarray([False, True, False, False, True]), 2).tolist()
        [0, 2]
    """
    return np.flatnonzero(np.logical_or.reduceat(chosen, np.arange(0, len(chosen), size)))


def self_influence(
    problem: Problem,
    backend: Backend,
    source: OpenSource,
    transform: ToInput,
    settings: Scoring = Scoring(),
    measurement: Objective | None = None,
) -> pa.Table:
    """Score a whole source into one table in memory.

    Its columns are those of a stored table. `in_curvature_set` marks the examples that the problem's matrix is averaged
    over: their own gradient is a part of it, and they score lower than they would outside. An example that cannot be
    read has a row of nulls and the reason. For a run that is written to disk and can be resumed, use
    `influence_ssl_jax.score`.

    Args:
        problem: The problem whose matrix is inverted.
        backend: How it is inverted.
        source: The examples.
        transform: The transform of an image to the input.
        settings: How examples are scored.
        measurement: The objective whose gradient is scored; the problem's own objective if None.

    Raises:
        DataError: The source is empty.

    Examples:
        >>> import jax, numpy as np
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.data import resident
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> images, transform = isj.Arrays(np.arange(4, dtype=np.uint8).reshape(2, 1, 2, 1)).open(), isj.ToInput(1, 2, 1)
        >>> objective = isj.Objective(isj.Network(Linear(2)), isj.GaussianNoise(), isj.CosineDistance())
        >>> batches = resident(images, transform, count=2, batch_size=2, seed=0)
        >>> problem = isj.Problem({"dense": {"kernel": np.eye(2, dtype=np.float32)}}, {}, batches, objective)
        >>> scoring = isj.Scoring(isj.Damping(absolute=0.1), batch_size=2)
        >>> isj.self_influence(problem, isj.Exact(), images, transform, scoring).num_rows
        2
    """
    if not len(source):
        raise DataError("The source holds no example, so there is nothing to score; check the path or the split.")
    parts = list(stream(Scorer.fit(problem, backend, settings, measurement), source, transform))
    table = pa.concat_tables([part.table for part in parts]).sort_by("index")
    index, vectors = table["index"].to_numpy(), embedding_matrix(table["embedding"])
    nearest = find_neighbours(vectors, settings.neighbours, settings.seed, index=index)
    inside = np.isin(index, np.asarray(problem.batches.index))
    skipped = skipped_table(row for part in parts for row in part.skipped)
    further = {**neighbour_columns(nearest), IN_CURVATURE_SET: inside}
    return assemble_table(table.drop_columns("embedding"), skipped, further, source.attributes())


def _collect(loaded: LoadedBatch, columns: Columns, spent: defaultdict[str, float]) -> Scored:
    """Wait for the numbers of a batch, and make its table."""
    began = time.perf_counter()
    jax.block_until_ready(columns)
    spent["device"] += time.perf_counter() - began
    return Scored(to_table(loaded, columns), loaded.skipped)
