"""From the draws of an example to one score and its standard error: three estimands that are easily confused."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Estimand: TypeAlias = Literal["mean_of_scores", "u_statistic", "score_of_mean"]


class Estimate(NamedTuple):
    """A score and how far another set of draws would move it.

    Attributes:
        score: The estimate.
        standard_error: Over the draws; NaN where there are too few to tell.
    """

    score: Float[Array, " batch"]
    standard_error: Float[Array, " batch"]


def estimate(gram: Float[Array, "batch draws draws"], estimand: Estimand) -> Estimate:
    """One score per example from `B_kl = g_kᵀ(C + λI)⁻¹g_l` over its K draws.

    - `mean_of_scores`: mean of B_kk. Targets `E gᵀA⁻¹g`, the score of one draw, averaged: it includes the spread of the
      gradient over draws, which under pixel noise is most of it.
    - `u_statistic`: mean of B_kl over k ≠ l. Unbiased for `(E g)ᵀA⁻¹(E g)`, the score of the expected loss; may be
      negative. Takes 2 draws, its standard error 3.
    - `score_of_mean`: mean of all B_kl, the score of the averaged loss; biased upwards from the former by
      (E gᵀA⁻¹g − (E g)ᵀA⁻¹(E g)) / K.

    Standard errors: of a mean for the first, by the jackknife over draws for the others.

    Raises:
        ValueError: A U-statistic of fewer than 2 draws.
    """
    draws = gram.shape[1]
    nothing = jnp.full(gram.shape[0], jnp.nan, gram.dtype)
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    if estimand == "mean_of_scores":
        error = jnp.std(diagonal, axis=1, ddof=1) / draws**0.5 if draws > 1 else nothing
        return Estimate(jnp.mean(diagonal, axis=1), error)
    total, own, row = jnp.sum(gram, axis=(1, 2)), jnp.sum(diagonal, axis=1), jnp.sum(gram, axis=2)
    total_without = total[:, None] - 2 * row + diagonal
    if estimand == "score_of_mean":
        without = total_without / max(draws - 1, 1) ** 2
        return Estimate(total / draws**2, _jackknife(without) if draws > 1 else nothing)
    if draws < 2:
        raise ValueError(f"A U-statistic pairs different draws: it takes at least 2, got draws={draws}.")
    off_without = total_without - (own[:, None] - diagonal)
    without = off_without / max((draws - 1) * (draws - 2), 1)
    return Estimate((total - own) / (draws * (draws - 1)), _jackknife(without) if draws > 2 else nothing)


def bound_estimate(
    gram: Float[Array, "batch draws draws"], rounding: Float[Array, "batch draws draws"], estimand: Estimand
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Bounds of the score from bounds of the error of each B_kl: every estimand weighs these with positive numbers.

    The sum over the draws is itself rounded, by at most one unit roundoff of the sum of sizes for each of K² numbers.

    Args:
        gram: B_kl.
        rounding: Bounds of the error of each.
        estimand: What the draws are averaged into.
    """
    score, sizes = estimate(gram, estimand).score, estimate(jnp.abs(gram), estimand).score
    spacing = float(jnp.finfo(gram.dtype).eps) * (gram.shape[1] ** 2 + 2)
    error = (1 + spacing) * (estimate(rounding, estimand).score + spacing * sizes)
    lower, upper = score - error, score + error
    return (lower if estimand == "u_statistic" else jnp.maximum(lower, 0.0)), upper


def curvature_error(left_out: Float[Array, "parts batch draws draws"], estimand: Estimand) -> Float[Array, " batch"]:
    """The standard error that the choice of the curvature set leaves: a jackknife over its parts.

    Args:
        left_out: Every B_kl by the curvature set without each of its parts.
        estimand: What the draws are averaged into.
    """
    return _jackknife(estimate_each(left_out, estimand).T)


def estimate_each(grams: Float[Array, "sets batch draws draws"], estimand: Estimand) -> Float[Array, "sets batch"]:
    """The scores by each of several curvature sets."""
    return jax.vmap(lambda gram: estimate(gram, estimand).score)(grams)


def reliability(between: Float[Array, ""], within: Float[Array, ""], draws: int) -> Float[Array, ""]:
    """Correlation of two independent K-draw scorings, `V_b / (V_b + V_w / K)` (theory: analysis of variance)."""
    return between / (between + within / draws)


def _jackknife(without: Float[Array, "batch draws"]) -> Float[Array, " batch"]:
    """√((K−1)/K Σ (θ_{−k} − mean)²)."""
    draws = without.shape[1]
    return jnp.sqrt((draws - 1) * jnp.var(without, axis=1))
