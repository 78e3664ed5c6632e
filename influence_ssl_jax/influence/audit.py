"""Certified scores: two-sided bounds of the exact score, for a random sample of examples, at any size of model."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.curvature.flat import flat_matvec
from influence_ssl_jax.curvature.trace import mean_eigenvalue
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.source import OpenSource
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.ihvp.backend import Damping
from influence_ssl_jax.influence.estimands import Estimand
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.linalg.quadrature import quadratic_form_bounds
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Audit:
    """How examples are certified.

    Attributes:
        examples: Size of the random sample; all where there are fewer.
        width: Iterate until (upper − lower) is at most so much of their mean.
        steps: Stop after so many products with C, however wide the interval then is. Memory: steps + 1 vectors of the
            parameters' size for each example of a batch.
        batch_size: Examples at a time.
        rounding: Unit roundoffs that C and the gradients may be off by (`linalg.quadrature`).
        probes: Random vectors for the mean eigenvalue, from which relative damping is resolved.
        seed: Chooses the sample.
    """

    examples: int = 200
    width: float = 0.05
    steps: int = 80
    batch_size: int = 4
    rounding: float = 32.0
    probes: int = 16
    seed: int = 0


class Certified(NamedTuple):
    """Bounds of a batch's scores; NaN where there is no score.

    Attributes:
        lower: Never above the exact score.
        upper: Never below it.
        steps: Products with C that it took.
    """

    lower: Float[Array, " batch"]
    upper: Float[Array, " batch"]
    steps: Int[Array, ""]


def sample(settings: Audit, population: int) -> Int[np.ndarray, " examples"]:
    """Which examples are audited: drawn without replacement, ascending."""
    chosen = np.random.default_rng(settings.seed).permutation(population)[: settings.examples]
    return np.sort(chosen)


def absolute_damping(problem: Problem, damping: Damping, settings: Audit) -> Float[Array, ""]:
    """λ as one number for the whole matrix: the certificates' own, and to give every backend as `Damping(absolute=…)`.

    A backend that is block-diagonal takes relative damping block by block, and then has another matrix to invert.

    Raises:
        CurvatureError: The curvature is zero or not finite.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    mean = jax.jit(mean_eigenvalue, static_argnums=2)(problem, key, settings.probes)
    resolved = damping.resolve(mean)
    assert not isinstance(resolved, dict)
    if not 0 < float(resolved) < np.inf:
        raise CurvatureError(
            f"The mean eigenvalue of the curvature is {float(mean)}: damping relative to it has no meaning. Check the "
            "perturbation and the checkpoint, or give an absolute damping."
        )
    return resolved


def certify(
    problem: Problem,
    measurement: Objective,
    batch: Batch,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    scoring: Scoring,
    settings: Audit,
) -> Certified:
    """Bounds of the scores of one batch, by Gauss and Gauss–Radau quadrature (`linalg.quadrature`).

    The draws, and what they are averaged into, are those of the score: bounds of `gᵀ(C + λI)⁻¹g` for every draw's
    gradient, for that of the averaged loss, or (`u_statistic`) for both.

    Args:
        problem: Whose curvature; positive semi-definite by construction.
        measurement: What is scored.
        batch: The examples.
        damping: λ.
        key: For the measurement of rounding.
        scoring: Draws, their noise and the estimand.
        settings: How narrow.

    Raises:
        CurvatureError: The curvature is a Hessian, of which no eigenvalue is known to be the smallest.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "A certificate needs a lower bound of C's eigenvalues, and a Hessian's is not known: audit 'ggn', 'fisher' "
            "or 'empirical_fisher', got curvature='hessian'."
        )
    if scoring.noise == "common":
        batch = dataclasses.replace(batch, key=jnp.broadcast_to(jax.random.key(scoring.seed), batch.key.shape))
    found = measured(measurement, problem.params, problem.frozen, batch, scoring.draws)
    rows = trees.ravel_batch(found.gradients.full()).reshape(scoring.draws, batch.index.shape[0], -1)
    product = flat_matvec(problem)
    starts = _starts(rows, scoring.estimand)

    def one(entry: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        chosen, key = entry
        width, steps, rounding = settings.width, settings.steps, settings.rounding
        bounds = quadratic_form_bounds(lambda v: jax.lax.map(product, v), chosen, damping, key, width, steps, rounding)
        return bounds.lower, bounds.upper, bounds.steps

    lower, upper, steps = jax.lax.map(one, (starts, jax.random.split(key, starts.shape[0])))
    low, high = _combined(lower, upper, scoring.estimand)
    unusable = found.degenerate | ~jnp.isfinite(low)
    return Certified(jnp.where(unusable, jnp.nan, low), jnp.where(unusable, jnp.nan, high), jnp.sum(steps))


def audit(
    problem: Problem,
    source: OpenSource,
    transform: ToInput,
    damping: Float[Array, ""],
    scoring: Scoring,
    settings: Audit = Audit(),
    measurement: Objective | None = None,
) -> pa.Table:
    """Certify a random sample of a source: columns `index, id, lower, upper`, in the order of `index`.

    Example by example the draws are those of `scores.stream` with the same `scoring`, whose `damping` is not read: the
    certificate is of `damping`, one number for the whole matrix.

    Raises:
        CurvatureError: The curvature is a Hessian.
        InfluenceError: No example of the sample could be read.
    """
    measurement = problem.objective if measurement is None else measurement
    run = jax.jit(certify, static_argnums=(1, 5, 6))
    key, parts = jax.random.key(scoring.seed), []
    chosen = sample(settings, len(source))
    for number, loaded in enumerate(batches(source, transform, settings.batch_size, key, chosen)):
        noise = jax.random.fold_in(jax.random.key(settings.seed), number)
        found = run(problem, measurement, loaded.batch, damping, noise, scoring, settings)
        parts.append(_rows(loaded.batch, loaded.ids, loaded.valid, found))
    if not parts:
        raise InfluenceError(f"None of the {len(chosen)} examples of the sample could be read; see the source's notes.")
    return pa.concat_tables(parts).sort_by("index")


def _starts(rows: Float[Array, "draws batch size"], estimand: Estimand) -> Float[Array, "starts batch size"]:
    """The gradients whose forms make up the estimand: of every draw, and the mean over draws."""
    mean = jnp.mean(rows, axis=0, keepdims=True)
    return {"mean_of_scores": rows, "score_of_mean": mean, "u_statistic": jnp.concatenate([rows, mean])}[estimand]


def _combined(
    lower: Float[Array, "starts batch"], upper: Float[Array, "starts batch"], estimand: Estimand
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Bounds of the estimand. Of K draws, `u = (K · form of the mean − mean of forms) / (K − 1)`."""
    if estimand != "u_statistic":
        return jnp.mean(lower, axis=0), jnp.mean(upper, axis=0)
    draws = lower.shape[0] - 1
    own = jnp.mean(lower[:-1], axis=0), jnp.mean(upper[:-1], axis=0)
    return (draws * lower[-1] - own[1]) / (draws - 1), (draws * upper[-1] - own[0]) / (draws - 1)


def _rows(
    batch: Batch, ids: tuple[str, ...] | list[str], valid: Bool[np.ndarray, " batch"], found: Certified
) -> pa.Table:
    """The valid rows of a certified batch."""
    return pa.table(
        {
            "index": pa.array(np.asarray(batch.index)[valid].astype(np.int64)),
            "id": pa.array([name for name, ok in zip(ids, valid, strict=True) if ok], pa.string()),
            "lower": np.asarray(found.lower, np.float64)[valid],
            "upper": np.asarray(found.upper, np.float64)[valid],
        }
    )
