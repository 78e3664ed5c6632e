"""How far an approximate score is from the certified one: inside its bounds, in size, in rank, and after calibration."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from influence_ssl_jax.influence.agreement import (
    Estimate,
    bootstrap,
    bottom_overlap,
    partial_spearman,
    share,
    spearman,
    top_overlap,
)
from influence_ssl_jax.influence.calibration import Calibration, Coverage

Vector = Float[np.ndarray, " examples"]
_LEAST = 8
"""Examples with a positive score from which one half can be calibrated by the other."""


class Errors(NamedTuple):
    """Quantiles over examples of `|score / exact − 1|`, the exact score taken in the middle of its bounds."""

    median: float
    p90: float


class Deviation(NamedTuple):
    """A score against certified bounds of the exact one.

    Attributes:
        inside: Share of examples whose score lies inside the bounds as it is.
        raw: Relative errors of the score as it is.
        proportional: Relative errors after one factor, the median ratio of these same examples.
        calibrated: Relative errors of examples that the calibration has not seen.
        coverage: Share of held-out examples whose bounds lie inside the conformal interval, beside what is expected.
        spearman: Rank correlation with the exact score.
        partial: The same, given the alignment loss: what the score knows beyond it.
        top: Overlap of the highest tenth.
        bottom: Overlap of the lowest tenth.
        examples: How many had a score and bounds.
    """

    inside: Estimate
    raw: Errors
    proportional: Errors
    calibrated: Errors
    coverage: Coverage
    spearman: Estimate
    partial: Estimate
    top: float
    bottom: float
    examples: int


def deviation(
    scores: Vector, lower: Vector, upper: Vector, alignment_loss: Vector, calibration: Calibration
) -> Deviation:
    """Compare a score with the certified one; examples without a number on either side are left out.

    What takes more examples than there are is NaN.
    """
    given = (scores, lower, upper)
    kept = np.isfinite(scores) & np.isfinite(lower) & np.isfinite(upper) & np.isfinite(alignment_loss)
    exact, ratio = (lower + upper)[kept] / 2, scores[kept] / ((lower + upper)[kept] / 2)
    scores, lower, upper, loss = (side[kept] for side in (scores, lower, upper, alignment_loss))
    within, tenth = int(np.sum((lower <= scores) & (scores <= upper))), max(1, len(exact) // 10)
    calibrated, coverage = np.full(0, np.nan), Coverage(float("nan"), float("nan"), float("nan"))
    if np.sum(scores > 0) >= _LEAST:
        calibrated, coverage = _held_out(scores, lower, upper, calibration) / exact, calibration.coverage(*given)
    return Deviation(
        inside=share(within, len(exact)),
        raw=_errors(ratio),
        proportional=_errors(ratio / np.median(ratio)) if len(ratio) else _errors(ratio),
        calibrated=_errors(calibrated),
        coverage=coverage,
        spearman=bootstrap(spearman, scores, exact),
        partial=bootstrap(partial_spearman, scores, exact, loss[:, None]),
        top=top_overlap(scores, exact, tenth) if len(exact) else float("nan"),
        bottom=bottom_overlap(scores, exact, tenth) if len(exact) else float("nan"),
        examples=len(exact),
    )


def _held_out(scores: Vector, lower: Vector, upper: Vector, calibration: Calibration) -> Vector:
    """Each half calibrated by the other."""
    found = np.full(len(scores), np.nan)
    order = np.random.default_rng(calibration.seed).permutation(np.flatnonzero(scores > 0))
    halves = np.array_split(order, 2)
    for own, other in (halves, halves[::-1]):
        found[own] = calibration.fit(scores[other], lower[other], upper[other])(scores[own]).score
    return found


def _errors(ratio: Vector) -> Errors:
    finite = np.abs(ratio[np.isfinite(ratio)] - 1)
    if not len(finite):
        return Errors(float("nan"), float("nan"))
    return Errors(float(np.median(finite)), float(np.quantile(finite, 0.9)))
