"""A certificate: two-sided bounds of the exact score of a batch of examples, at any size of model."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.curvature.flat import flat_products
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp.arnoldi import Arnoldi, ArnoldiState
from influence_ssl_jax.ihvp.certificate import certificate, refined, solved_by
from influence_ssl_jax.influence.estimands import Estimand
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.linalg.quadrature import Bounds, quadratic_form_bounds
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Audit:
    """How examples are certified.

    Attributes:
        examples: Size of the random sample; all where there are fewer. A larger one later contains a smaller one.
        width: Iterate until (upper − lower) is at most so much of their mean.
        steps: Stop after so many products with C, however wide the interval then is. Memory: steps + 1 vectors of the
            parameters' size for each example of a batch.
        batch_size: Examples at a time.
        subspace: Rank of a Krylov subspace that is shared by all examples: about twice as many products with C once,
            then fewer steps for each example, because the large eigenvalues are known; 0 for none.
        rounding: Unit roundoffs that C and the gradients may be off by (`linalg.quadrature`).
        probes: Random vectors for the mean eigenvalue, from which relative damping is resolved.
        seed: Chooses the sample.
    """

    examples: int = 200
    width: float = 0.05
    steps: int = 100
    batch_size: int = 4
    subspace: int = 0
    rounding: float = 32.0
    probes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that certify nothing."""
        if self.subspace < 0:
            raise ValueError(f"subspace is a rank, 0 for none, got {self.subspace}.")
        for name in ("examples", "steps", "batch_size", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"An audit takes at least one of {name}, got {name}={getattr(self, name)}.")
        if not self.width >= 0:
            raise ValueError(f"width is a share of the score, 0 or more, got {self.width}.")


class Certified(NamedTuple):
    """Bounds of a batch's scores; NaN where there is no score.

    Attributes:
        lower: Never above the exact score.
        upper: Never below it; infinite where rounding leaves no bound.
        degenerate: Examples for which the measurement is undefined.
        steps: Products with C that each example took, over all its draws.
    """

    lower: Float[Array, " batch"]
    upper: Float[Array, " batch"]
    degenerate: Bool[Array, " batch"]
    steps: Int[Array, ""]


def certify(
    problem: Problem,
    measurement: Objective,
    batch: Batch,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    scoring: Scoring,
    settings: Audit,
    shared: ArnoldiState | None = None,
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
        shared: The Krylov subspace that is shared, where there is one (`shared_subspace`).

    Raises:
        CurvatureError: The curvature is a Hessian, of which no eigenvalue is known to be the smallest.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "A certificate needs a lower bound of C's eigenvalues, and a Hessian's is not known: audit 'ggn', 'fisher' "
            "or 'empirical_fisher', got curvature='hessian'."
        )
    found = measured(measurement, problem.params, problem.frozen, keyed(batch, scoring), scoring.draws)
    rows = trees.ravel_batch(found.gradients.full()).reshape(scoring.draws, batch.index.shape[0], -1)
    starts = _starts(rows, scoring.estimand)

    def one(entry: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        bounds = _bounds(problem, *entry, damping, settings, shared)
        return bounds.lower, bounds.upper, bounds.steps

    lower, upper, steps = jax.lax.map(one, (starts, jax.random.split(key, starts.shape[0])))
    low, high = _combined(lower, upper, scoring.estimand)
    unusable = found.degenerate | ~jnp.isfinite(low)
    return Certified(
        jnp.where(unusable, jnp.nan, low), jnp.where(unusable, jnp.nan, high), found.degenerate, jnp.sum(steps)
    )


def shared_subspace(problem: Problem, settings: Audit) -> ArnoldiState | None:
    """The dominant Ritz pairs of C, from a key of their own; None where the settings ask for none."""
    if not settings.subspace:
        return None
    backend = _shared(settings)
    return jax.jit(backend.fit)(problem, jax.random.fold_in(jax.random.key(settings.seed), 2))


def _shared(settings: Audit) -> Arnoldi:
    return Arnoldi(settings.subspace, complement="drop", probes=1, unexplained="materialise")


def _bounds(
    problem: Problem,
    starts: Float[Array, "n size"],
    key: Key[Array, ""],
    damping: Float[Array, ""],
    settings: Audit,
    shared: ArnoldiState | None,
) -> Bounds:
    """Quadrature started at the gradients, or at what the shared subspace leaves of them."""
    width, steps, rounding = settings.width, settings.steps, settings.rounding
    if shared is None:
        return quadratic_form_bounds(flat_products(problem), starts, damping, key, width, steps, rounding)
    found = solved_by(_shared(settings), shared, problem, starts, damping, rounding)
    bounds, sure = (
        refined(found, problem, damping, key, width, steps, rounding),
        certificate(found, damping).interval,
    )
    # What the subspace leaves may be rounding alone, of which quadrature says nothing; both pairs of bounds hold.
    return bounds._replace(lower=jnp.maximum(bounds.lower, sure.lower), upper=jnp.minimum(bounds.upper, sure.upper))


def keyed(batch: Batch, scoring: Scoring) -> Batch:
    """The batch with the keys that its draws come from."""
    if scoring.noise == "own":
        return batch
    return dataclasses.replace(batch, key=jnp.broadcast_to(jax.random.key(scoring.seed), batch.key.shape))


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
