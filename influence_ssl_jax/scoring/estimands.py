"""Estimate an example's score from its draws, with a standard error."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Estimand: TypeAlias = Literal["mean_of_scores", "u_statistic", "score_of_mean"]


class Estimate(NamedTuple):
    """A score and its standard error.

    Attributes:
        score: The estimate.
        standard_error: Standard error over the draws; NaN if there are too few draws for one.
    """

    score: Float[Array, " batch"]
    standard_error: Float[Array, " batch"]


def estimate(gram: Float[Array, "batch draws draws"], estimand: Estimand) -> Estimate:
    """Return each example's score from the forms of its K draws.

    The forms are `B_kl = g_kᵀ(C + λI)⁻¹g_l`.

    - `mean_of_scores`: the mean of B_kk. It estimates `E gᵀA⁻¹g`, the mean score of one draw. It includes the spread of
      the gradient over draws, which under pixel noise is most of it.
    - `u_statistic`: the mean of B_kl over k ≠ l. It estimates `(E g)ᵀA⁻¹(E g)`, the score of the expected loss, without
      bias, and may be negative. It needs 2 draws, its standard error 3.
    - `score_of_mean`: the mean of all B_kl, the score of the averaged loss. It exceeds the score of the expected loss
      by (E gᵀA⁻¹g − (E g)ᵀA⁻¹(E g)) / K in expectation.

    The standard error of the first is that of a mean; those of the others come from the jackknife over draws.

    Args:
        gram: B_kl of each example.
        estimand: The kind of estimate.

    Raises:
        ValueError: `u_statistic` has fewer than 2 draws.

    Examples:
        >>> import jax.numpy as jnp
        >>> gram = jnp.asarray([[[4.0, 1.0], [1.0, 2.0]]])
        >>> [float(estimate(gram, kind).score[0]) for kind in ("mean_of_scores", "u_statistic", "score_of_mean")]
        [3.0, 1.0, 2.0]
    """
    draws = gram.shape[1]
    nothing = jnp.full(gram.shape[0], jnp.nan, gram.dtype)
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    if estimand == "mean_of_scores":
        error = _spread(diagonal, 1 / (draws * (draws - 1))) if draws > 1 else nothing
        return Estimate(jnp.mean(diagonal, axis=1), error)
    total, own, row = jnp.sum(gram, axis=(1, 2)), jnp.sum(diagonal, axis=1), jnp.sum(gram, axis=2)
    total_without = total[:, None] - 2 * row + diagonal
    if estimand == "score_of_mean":
        without = total_without / max(draws - 1, 1) ** 2
        return Estimate(total / draws**2, _jackknife(without) if draws > 1 else nothing)
    if draws < 2:
        raise ValueError(f"A U-statistic pairs different draws: it needs at least 2, got draws={draws}.")
    off_without = total_without - (own[:, None] - diagonal)
    without = off_without / max((draws - 1) * (draws - 2), 1)
    return Estimate((total - own) / (draws * (draws - 1)), _jackknife(without) if draws > 2 else nothing)


def bound_estimate(
    gram: Float[Array, "batch draws draws"], rounding: Float[Array, "batch draws draws"], estimand: Estimand
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Return bounds of the score from error bounds of each B_kl.

    Every estimand averages the B_kl with weights that are not negative, so their error bounds average too. The sum over
    the draws is itself rounded, by at most one unit roundoff of the sum of sizes for each of K² numbers.

    Args:
        gram: B_kl of each example.
        rounding: A bound of the error of each B_kl.
        estimand: The kind of estimate.

    Returns:
        Lower and upper bounds; the lower one is not negative, except for a `u_statistic`.

    Examples:
        >>> import jax.numpy as jnp
        >>> low, high = bound_estimate(jnp.asarray([[[4.0]]]), jnp.asarray([[[1.0]]]), "mean_of_scores")
        >>> bool(2.99 < low[0] <= 3), bool(5 <= high[0] < 5.01)
        (True, True)
    """
    score, sizes = estimate(gram, estimand).score, estimate(jnp.abs(gram), estimand).score
    spacing = float(jnp.finfo(gram.dtype).eps) * (gram.shape[1] ** 2 + 2)
    error = (1 + spacing) * (estimate(rounding, estimand).score + spacing * sizes)
    lower, upper = score - error, score + error
    return (lower if estimand == "u_statistic" else jnp.maximum(lower, 0.0)), upper


def curvature_error(left_out: Float[Array, "parts batch draws draws"], estimand: Estimand) -> Float[Array, " batch"]:
    """Return the standard error that the choice of the curvature set leaves.

    It comes from a jackknife over parts of the set.

    Args:
        left_out: Every B_kl by the curvature set without each of its parts.
        estimand: The kind of estimate.

    Examples:
        >>> import jax.numpy as jnp
        >>> halves = jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)  # a form without each of two parts
        >>> curvature_error(halves, "mean_of_scores").tolist()
        [1.0]
    """
    return _jackknife(estimate_each(left_out, estimand).T)


def estimate_each(grams: Float[Array, "sets batch draws draws"], estimand: Estimand) -> Float[Array, "sets batch"]:
    """Return the scores by each of several curvature sets.

    Examples:
        >>> import jax.numpy as jnp
        >>> estimate_each(jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1), "mean_of_scores").tolist()
        [[1.0], [3.0]]
    """
    return jax.vmap(lambda gram: estimate(gram, estimand).score)(grams)


def _jackknife(without: Float[Array, "batch draws"]) -> Float[Array, " batch"]:
    """Return the jackknife's standard error `√((K−1)/K Σ (θ_{−k} − mean)²)`."""
    draws = without.shape[1]
    return _spread(without, (draws - 1) / draws)


def _spread(values: Float[Array, "batch draws"], factor: float) -> Float[Array, " batch"]:
    """Compute `√(factor Σ (θ − mean)²)`.

    No square leaves the range of the type.
    """
    apart = values - jnp.mean(values, axis=1, keepdims=True)
    largest = jnp.max(jnp.abs(apart), axis=1)
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(factor * jnp.sum((apart / unit[:, None]) ** 2, axis=1))
