"""Self-influence of every example of a data set, streamed: a score, its uncertainty, and the baselines beside it."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int

from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.data.loader import LoadedBatch, batches
from influence_ssl_jax.data.source import OpenSource, Skipped
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.ihvp.backend import Backend, Damping, Resolved
from influence_ssl_jax.influence.baselines import knn_distance, pixel_variance
from influence_ssl_jax.influence.estimands import Estimand, estimate
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How examples are scored, given a problem and a backend.

    Attributes:
        damping: λ.
        draws: Perturbations per example. One draw gives no standard error; 8 or more for a ranking by `u_statistic`.
        estimand: What the draws are averaged into.
        noise: `own` draws for every example, or the same for all (`common`), which leaves less noise in a ranking.
        batch_size: Examples at a time; a score does not depend on it beyond rounding.
        seed: Fixes the draws, the random bases and the probes.
        neighbours: Neighbours of the baseline `knn_distance`.
    """

    damping: Damping = Damping()
    draws: int = 4
    estimand: Estimand = "mean_of_scores"
    noise: Literal["own", "common"] = "own"
    batch_size: int = 64
    seed: int = 0
    neighbours: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that give no score."""
        least = 2 if self.estimand == "u_statistic" else 1
        if self.draws < least:
            raise ValueError(f"{self.estimand} takes at least {least} draws, got draws={self.draws}.")


class Columns(NamedTuple):
    """What is computed for every example of a batch."""

    score: Float[Array | np.ndarray, " batch"]
    score_se: Float[Array | np.ndarray, " batch"]
    alignment_loss: Float[Array | np.ndarray, " batch"]
    gradient_norm: Float[Array | np.ndarray, " batch"]
    pixel_variance: Float[Array | np.ndarray, " batch"]
    residual: Float[Array | np.ndarray, " batch"]
    degenerate: Bool[Array | np.ndarray, " batch"]
    embedding: Float[Array | np.ndarray, "batch embedding"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scorer:
    """A fitted backend, ready to score batches; a pytree.

    Attributes:
        problem: Where gradients and curvature are taken.
        state: The fitted backend's.
        damping: λ in numbers.
        measurement: What is scored.
        backend: Which inverse.
        settings: How.
        blocks: The layers, for gradient norms.
    """

    problem: Problem
    state: PyTree
    damping: Resolved
    measurement: Objective = dataclasses.field(metadata={"static": True})
    backend: Backend = dataclasses.field(metadata={"static": True})
    settings: Scoring = dataclasses.field(metadata={"static": True})
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})

    @classmethod
    def fit(
        cls, problem: Problem, backend: Backend, settings: Scoring = Scoring(), measurement: Objective | None = None
    ) -> "Scorer":
        """Fit the backend to the problem and resolve the damping.

        Args:
            problem: Which matrix is inverted.
            backend: How.
            settings: How examples are scored.
            measurement: Whose gradient is scored; the problem's own objective where None.

        Raises:
            IndefiniteError: C + λI is not positive definite.
            CurvatureError: The backend cannot represent the problem's curvature.
            StructureError: A parameter belongs to no known layer.
        """
        measurement = problem.objective if measurement is None else measurement
        blocks = cut.discover(
            measurement.network, problem.params, problem.frozen, problem.batches.image.shape[2:], "materialise"
        )
        state = jax.jit(backend.fit)(problem, jax.random.key(settings.seed))
        damping = backend.resolve(state, settings.damping)
        return cls(problem, state, damping, measurement, backend, settings, blocks)

    @jax.jit
    def __call__(self, batch: Batch) -> Columns:
        """Score one batch; every row depends on its own example alone."""
        settings = self.settings
        if settings.noise == "common":
            one = jax.random.key(settings.seed)
            batch = dataclasses.replace(batch, key=jnp.broadcast_to(one, batch.key.shape))
        found = measured(self.measurement, self.problem.params, self.problem.frozen, batch, settings.draws)
        form = self.backend.draw_gram(self.state, found.gradients, self.damping)
        score, error = estimate(form.values, settings.estimand)
        squared = found.gradients.squared_norms(self.blocks).reshape(settings.draws, -1)
        return Columns(
            score=score,
            score_se=error,
            alignment_loss=jnp.mean(found.values, axis=0),
            gradient_norm=jnp.sqrt(jnp.mean(squared, axis=0)),
            pixel_variance=pixel_variance(batch.image),
            residual=form.residual,
            degenerate=found.degenerate,
            embedding=found.embeddings,
        )


class Scored(NamedTuple):
    """One scored batch: a table of its examples, and those that could not be read."""

    table: pa.Table
    skipped: tuple[Skipped, ...]


def stream(
    scorer: Scorer, source: OpenSource, transform: ToInput, indices: Int[np.ndarray, " count"] | None = None
) -> Iterator[Scored]:
    """Score the examples named by `indices` (all where None), a batch at a time, in their order.

    Columns: `index, id, score, score_se, alignment_loss, gradient_norm, pixel_variance, reason, embedding`. `reason` is
    empty for a good score and says otherwise what is the matter; where there is no number, the score is NaN.
    """
    key = jax.random.key(scorer.settings.seed)
    for loaded in batches(source, transform, scorer.settings.batch_size, key, indices):
        yield Scored(_table(loaded, scorer(loaded.batch)), loaded.skipped)


def self_influence(
    problem: Problem,
    backend: Backend,
    source: OpenSource,
    transform: ToInput,
    settings: Scoring = Scoring(),
    measurement: Objective | None = None,
) -> pa.Table:
    """Scores of a whole source as one table in memory, with `knn_distance` and the source's attributes.

    Unreadable examples have a row without a score (NaN) and the reason. For a run that is written to disk and can be
    resumed, use the command line's `score`.
    """
    parts = list(stream(Scorer.fit(problem, backend, settings, measurement), source, transform))
    table = pa.concat_tables([part.table for part in parts]).sort_by("index")
    embeddings = embedding_matrix(table["embedding"])
    table = table.drop_columns("embedding")
    distance = knn_distance(embeddings, settings.neighbours, settings.seed)
    table = table.add_column(table.schema.get_field_index("reason"), "knn_distance", pa.array(distance))
    skipped = [row for part in parts for row in part.skipped]
    if skipped:
        rows = {name: [getattr(row, name) for row in skipped] for name in ("index", "id", "reason")}
        nothing = {name: [float("nan")] * len(skipped) for name in table.column_names if name not in rows}
        table = pa.concat_tables([table, pa.table({**rows, **nothing}, schema=table.schema)]).sort_by("index")
    attributes = source.attributes()
    if attributes is not None:
        taken = attributes.take(table["index"])
        for name in taken.column_names:
            table = table.append_column(name if name not in table.column_names else f"source_{name}", taken[name])
    return table


def embedding_matrix(column: pa.ChunkedArray) -> Float[np.ndarray, "examples width"]:
    """A column of fixed-size lists as a matrix."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


def _table(loaded: LoadedBatch, columns: Columns) -> pa.Table:
    """The valid rows of a scored batch."""
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


def reasons(found: Columns, tolerance: float = 1e-2) -> list[str]:
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
        if found.residual[i] > tolerance:
            return f"unconverged solve: relative residual {found.residual[i]:.2g}"
        return ""

    return [one(i) for i in range(len(found.score))]
