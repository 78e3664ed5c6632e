"""Score the examples of a batch: draws, estimand, baselines."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num

from influence_ssl_jax import randomness
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.gradients import check_gradients
from influence_ssl_jax.ihvp.backend import Backend, Damping, Resolved
from influence_ssl_jax.losses.alignment import Measurement
from influence_ssl_jax.parallel import over_examples
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.estimands import Estimand, bound_estimate, curvature_error, estimate, estimate_each
from influence_ssl_jax.scoring.fitting import fit_checked
from influence_ssl_jax.scoring.memory import available_memory, estimate_memory
from influence_ssl_jax.types import Batch, PyTree


def pixel_variance(images: Num[Array, "batch height width channels"]) -> Float[Array, " batch"]:
    """Variance over all pixels and channels, pixels in [0, 1]: zero for a uniform image."""
    pixels = images / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images
    # Less the first pixel, a uniform image is zero to its last digit; its mean would leave rounding.
    return jnp.var(pixels - pixels[:, :1, :1, :1], axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How examples are scored, given a problem and a backend.

    Attributes:
        damping: λ.
        draws: Perturbations per example. One draw gives no standard error; 8 or more for a ranking by `u_statistic`.
        estimand: What the draws are averaged into.
        noise: `own` draws for every example, or the same for all (`common`), which leaves less noise in a ranking.
        batch_size: Examples at a time on each device; as many as fit its memory where None. A score does not depend on
            it beyond rounding.
        seed: Fixes the draws, the random bases and the probes.
        neighbours: Neighbours of the baseline `knn_distance`.
        leave_own_out: Whether an image that is in the curvature set is scored by the curvature of the other images of the
            set, at the same λ: what it would score had it not been drawn. Otherwise its own gradients are part of C and
            pull its score down, the more the fewer images the set has. Only of `Gram`, and of losses that do not couple
            examples. Images outside the set score the same either way.
    """

    damping: Damping = Damping()
    draws: int = 4
    estimand: Estimand = "mean_of_scores"
    noise: Literal["own", "common"] = "own"
    batch_size: int | None = None
    seed: int = 0
    neighbours: int = 1
    leave_own_out: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that give no score."""
        least = 2 if self.estimand == "u_statistic" else 1
        if self.draws < least:
            raise ValueError(f"{self.estimand} takes at least {least} draws, got draws={self.draws}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"A batch has at least one example, got batch_size={self.batch_size}.")

    @property
    def key(self) -> Key[Array, ""]:
        """The key below which every scored example has its own."""
        return randomness.root(self.seed, Stream.SCORED_EXAMPLES)


def assign_keys(batch: Batch, settings: Scoring) -> Batch:
    """Return the batch with the keys that its draws come from: its own, or one for all examples."""
    if settings.noise == "own":
        return batch
    one = randomness.root(settings.seed, Stream.COMMON_NOISE)
    return dataclasses.replace(batch, key=jnp.broadcast_to(one, batch.key.shape))


class Columns(NamedTuple):
    """What is computed for every example of a batch.

    The last five where the backend knows them (`Backend.assess`): between which bounds the score of the fitted C lies
    whatever rounding has done; the standard error that the choice of the curvature set leaves, by the jackknife over
    parts of it; and the scores by either half of it.
    """

    score: Float[Array | np.ndarray, " batch"]
    score_se: Float[Array | np.ndarray, " batch"]
    alignment_loss: Float[Array | np.ndarray, " batch"]
    gradient_norm: Float[Array | np.ndarray, " batch"]
    pixel_variance: Float[Array | np.ndarray, " batch"]
    residual: Float[Array | np.ndarray, " batch"]
    degenerate: Bool[Array | np.ndarray, " batch"]
    unresolved: Bool[Array | np.ndarray, " batch"]
    embedding: Float[Array | np.ndarray, "batch embedding"]
    score_lo: Float[Array | np.ndarray, " batch"] | None = None
    score_hi: Float[Array | np.ndarray, " batch"] | None = None
    score_se_curvature: Float[Array | np.ndarray, " batch"] | None = None
    score_first_half: Float[Array | np.ndarray, " batch"] | None = None
    score_second_half: Float[Array | np.ndarray, " batch"] | None = None


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
        settings: How; the batch size is a number here.
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
            InfluenceError: The backend cannot leave an image's own contribution out.
            StructureError: A parameter is loose or unread, or its gradient fails the check against `jax.grad`.
        """
        if settings.leave_own_out:
            backend.check_own(problem)
        return cls.of(problem, fit_checked(problem, backend, settings.seed), backend, settings, measurement)

    @classmethod
    def of(
        cls, problem: Problem, state: PyTree, backend: Backend, settings: Scoring, measurement: Objective | None = None
    ) -> "Scorer":
        """As `fit`, of a backend that was fitted before."""
        measurement = problem.objective if measurement is None else measurement
        shape = problem.batches.image.shape[2:]
        check_gradients(measurement.network, problem)
        if settings.leave_own_out:
            backend.check_own(problem)
        blocks = cut.discover(measurement.network, problem.params, problem.frozen, shape, "materialise")
        damping = backend.resolve(state, settings.damping)
        if settings.batch_size is None:
            need = estimate_memory(measurement, problem.params, problem.frozen, backend, state, shape, settings.draws)
            settings = dataclasses.replace(settings, batch_size=need.batch_size(*available_memory()))
        return cls(problem, state, damping, measurement, backend, settings, blocks)

    @property
    def batch_size(self) -> int:
        """Examples at a time on each device."""
        assert self.settings.batch_size is not None  # `of` has chosen
        return self.settings.batch_size

    @jax.jit
    def __call__(self, batch: Batch) -> Columns:
        """Score one batch; every row depends on its own example alone, and under a mesh every device has its rows."""
        return over_examples(Scorer._rows)(self, batch)

    def _rows(self, batch: Batch) -> Columns:
        settings = self.settings
        drawn, loss = assign_keys(batch, settings), self.measurement.loss
        assert isinstance(loss, Measurement)
        found = measure(self.measurement, self.problem.params, self.problem.frozen, drawn, settings.draws)
        given = self.state, found.gradients, self.damping
        form, rounding, left_out, halves = (
            self.backend.assess_without_own(*given, batch.index)
            if settings.leave_own_out
            else self.backend.assess(*given)
        )
        score, error = estimate(form.values, settings.estimand)
        lower, upper = (None, None) if rounding is None else bound_estimate(form.values, rounding, settings.estimand)
        curvature = None if left_out is None else curvature_error(left_out, settings.estimand)
        first, second = (None, None) if halves is None else estimate_each(halves, settings.estimand)
        squared = found.gradients.squared_norms(self.blocks).reshape(settings.draws, -1)
        return Columns(
            score=score,
            score_se=error,
            alignment_loss=jnp.mean(found.values, axis=0),
            gradient_norm=jnp.sqrt(jnp.mean(squared, axis=0)),
            pixel_variance=pixel_variance(batch.image),
            residual=form.residual,
            degenerate=found.degenerate,
            unresolved=jnp.all(found.values <= loss.rounding(found.embeddings)[None], axis=0),
            embedding=found.embeddings,
            score_lo=lower,
            score_hi=upper,
            score_se_curvature=curvature,
            score_first_half=first,
            score_second_half=second,
        )
