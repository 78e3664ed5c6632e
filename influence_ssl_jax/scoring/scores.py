"""Score the examples of a batch, with the baselines beside the score."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Num

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.colour import luminance
from influence_ssl_jax.configuration import COUNT, check_numbers
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
from influence_ssl_jax.scoring.memory import Memory, available_memory, estimate_memory
from influence_ssl_jax.types import Batch, PyTree


def pixel_variance(images: Num[Array, "batch height width channels"]) -> Float[Array, " batch"]:
    """Return the variance over pixels (in [0, 1]) and channels.

    It is zero for a uniform image.

    Examples:
        >>> import jax.numpy as jnp
        >>> images = jnp.zeros((2, 2, 2, 1)).at[1, 0].set(1.0)
        >>> pixel_variance(images).tolist()
        [0.0, 0.25]
    """
    pixels = _scale_pixels(images)
    # Subtracting the first pixel makes a uniform image exactly zero; subtracting its mean would leave rounding.
    return jnp.var(pixels - pixels[:, :1, :1, :1], axis=(1, 2, 3))


def brightness(images: Num[Array, "batch height width channels"]) -> Float[Array, "batch 2"]:
    """Return mean and standard deviation of the luminance.

    Pixels are in [0, 1]. The standard deviation is the contrast; it is zero for a uniform image. Of images with neither
    1 nor 3 channels, the luminance is the mean of the channels.

    Examples:
        >>> import jax.numpy as jnp
        >>> images = jnp.zeros((2, 2, 2, 1)).at[1, 0].set(1.0)
        >>> brightness(images).tolist()
        [[0.0, 0.0], [0.5, 0.5]]
    """
    pixels = _scale_pixels(images)
    grey = jax.vmap(luminance)(pixels) if pixels.shape[-1] in (1, 3) else jnp.mean(pixels, axis=-1, keepdims=True)
    return jnp.stack([jnp.mean(grey, axis=(1, 2, 3)), jnp.std(grey - grey[:, :1, :1], axis=(1, 2, 3))], axis=1)


def _scale_pixels(images: Num[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Return pixels in [0, 1]."""
    return images / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How examples are scored, for any problem and backend.

    Attributes:
        damping: λ.
        draws: Perturbations of each example. One draw gives no standard error; a ranking by `u_statistic` needs 8 or
            more.
        estimand: How the draws are averaged.
        noise: `own` draws for every example, or the same draws for all (`common`), which leaves less noise in a
            ranking.
        batch_size: Examples at a time on each device; None takes as many as fit its memory. A score does not depend on
            it beyond rounding.
        seed: The seed of the draws, the random bases and the probes.
        neighbours: Neighbours of the baseline `knn_distance`.
        leave_own_out: Whether an image of the curvature set is scored by the curvature of the other images of the set,
            at the same λ: the score it would have if it had not been drawn. Without it, its own gradients are part of C
            and lower its score, the more the fewer images the set has. Only for `Gram`, and for losses that do not
            couple examples. Images outside the set have the same score either way.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> scoring = isj.Scoring(draws=8, estimand="u_statistic")  # isj.score(encoder, images, scoring=scoring)
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
            raise ValueError(f"{self.estimand} needs at least {least} draws, got draws={self.draws}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"A batch needs at least one example, got batch_size={self.batch_size}.")
        if self.neighbours < 1:
            raise ValueError(f"A distance is to at least one neighbour, got neighbours={self.neighbours}.")
        check_numbers(self, draws=COUNT, batch_size=COUNT, neighbours=COUNT)

    @property
    def key(self) -> Key[Array, ""]:
        """The key from which every scored example derives its own."""
        return randomness.root(self.seed, Stream.SCORED_EXAMPLES)


def assign_keys(batch: Batch, settings: Scoring) -> Batch:
    """Return the batch with its own keys, or one for all.

    Args:
        batch: A batch with a key for each example.
        settings: `noise` decides; `seed` gives the common key.
    """
    if settings.noise == "own":
        return batch
    one = randomness.root(settings.seed, Stream.COMMON_NOISE)
    return dataclasses.replace(batch, key=jnp.broadcast_to(one, batch.key.shape))


class Columns(NamedTuple):
    """The numbers of every example of a batch.

    The last five are absent if the backend does not know them (`Backend.assess`).

    Attributes:
        score: The score.
        score_se: Its standard error over draws.
        alignment_loss: Mean loss over draws.
        gradient_norm: Root of the mean squared gradient norm over draws.
        pixel_variance: Variance of the pixels.
        brightness: Mean of the luminance.
        contrast: Standard deviation of the luminance.
        residual: Largest relative residual of a solve; zero if the inverse is applied directly.
        degenerate: Whether the measurement is undefined, as for a zero embedding.
        unresolved: Whether the views agree to rounding in all draws.
        embedding: The embedding of the clean view.
        score_lo: A lower bound of the score of the fitted C, whatever rounding does.
        score_hi: An upper bound of it.
        score_se_curvature: The standard error that the choice of the curvature set leaves, by a jackknife over parts of
            it.
        score_first_half: The score by the first half of the curvature set.
        score_second_half: The score by the second half.
    """

    score: Float[Array | np.ndarray, " batch"]
    score_se: Float[Array | np.ndarray, " batch"]
    alignment_loss: Float[Array | np.ndarray, " batch"]
    gradient_norm: Float[Array | np.ndarray, " batch"]
    pixel_variance: Float[Array | np.ndarray, " batch"]
    brightness: Float[Array | np.ndarray, " batch"]
    contrast: Float[Array | np.ndarray, " batch"]
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
    """A fitted backend that scores batches; a pytree.

    Attributes:
        problem: The parameters, and the problem whose curvature was fitted.
        state: The fitted state of the backend.
        damping: λ in numbers.
        measurement: The objective that is scored.
        backend: The backend.
        settings: How examples are scored; its batch size is a number.
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
            problem: The problem whose matrix is inverted.
            backend: How it is inverted.
            settings: How examples are scored.
            measurement: The objective whose gradient is scored; the problem's own objective if None.

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
        cls,
        problem: Problem,
        state: PyTree,
        backend: Backend,
        settings: Scoring,
        measurement: Objective | None = None,
        held: int = 0,
    ) -> "Scorer":
        """Make a scorer of a state that was fitted before.

        Other arguments, and errors, are those of `fit`.

        Args:
            problem: The problem whose matrix is inverted.
            state: The fitted state.
            backend: The backend that fitted it.
            settings: How examples are scored.
            measurement: The objective whose gradient is scored; the problem's own objective if None.
            held: Bytes that others hold on each device: they leave less room for a batch.
        """
        measurement = problem.objective if measurement is None else measurement
        shape = problem.batches.image.shape[2:]
        check_gradients(measurement.network, problem)
        if settings.leave_own_out:
            backend.check_own(problem)
        blocks = cut.discover(measurement.network, problem.params, problem.frozen, shape, "materialise")
        damping = backend.resolve(state, settings.damping)
        scorer = cls(problem, state, damping, measurement, backend, settings, blocks)
        if settings.batch_size is None:
            settings = dataclasses.replace(settings, batch_size=scorer.memory().batch_size(*available_memory(), held))
        return dataclasses.replace(scorer, settings=settings)

    def memory(self) -> Memory:
        """Estimate the memory that scoring takes on each device."""
        problem, shape = self.problem, self.problem.batches.image.shape[2:]
        held = problem.params, problem.frozen
        return estimate_memory(self.measurement, *held, self.backend, self.state, shape, self.settings.draws)

    @property
    def batch_size(self) -> int:
        """The number of examples at a time on each device."""
        assert self.settings.batch_size is not None  # `of` has set it
        return self.settings.batch_size

    @jax.jit
    def __call__(self, batch: Batch) -> Columns:
        """Score one batch.

        Every row depends on its own example alone; under a mesh every device scores its rows.
        """
        return over_examples(Scorer._rows)(self, batch)

    def _rows(self, batch: Batch) -> Columns:
        """Score the rows of one device."""
        settings = self.settings
        drawn, loss = assign_keys(batch, settings), self.measurement.loss
        assert isinstance(loss, Measurement)
        measurements = measure(self.measurement, self.problem.params, self.problem.frozen, drawn, settings.draws)
        arguments = self.state, measurements.gradients, self.damping
        form, rounding, left_out, halves = (
            self.backend.assess_without_own(*arguments, batch.index)
            if settings.leave_own_out
            else self.backend.assess(*arguments)
        )
        score, error = estimate(form.values, settings.estimand)
        lower, upper = (None, None) if rounding is None else bound_estimate(form.values, rounding, settings.estimand)
        curvature = None if left_out is None else curvature_error(left_out, settings.estimand)
        first, second = (None, None) if halves is None else estimate_each(halves, settings.estimand)
        squared = measurements.gradients.squared_norms(self.blocks).reshape(settings.draws, -1)
        light = brightness(batch.image)
        return Columns(
            score=score,
            score_se=error,
            alignment_loss=jnp.mean(measurements.values, axis=0),
            gradient_norm=jnp.sqrt(jnp.mean(squared, axis=0)),
            pixel_variance=pixel_variance(batch.image),
            brightness=light[:, 0],
            contrast=light[:, 1],
            residual=form.residual,
            degenerate=measurements.degenerate,
            unresolved=jnp.all(measurements.values <= loss.rounding(measurements.embeddings)[None], axis=0),
            embedding=measurements.embeddings,
            score_lo=lower,
            score_hi=upper,
            score_se_curvature=curvature,
            score_first_half=first,
            score_second_half=second,
        )
