"""Bring scores to the exact scale, and measure how far from exact they are."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.isotonic import IsotonicRegression

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.statistics import (
    Estimate,
    bootstrap,
    bottom_overlap,
    partial_spearman,
    share,
    spearman,
    top_overlap,
)

Vector = Float[np.ndarray, " examples"]
Curve = Callable[[np.ndarray], np.ndarray]


class Calibrated(NamedTuple):
    """Scores on the scale of the exact ones.

    Attributes:
        score: The calibrated score.
        low: Lower end of its interval.
        high: Upper end; infinite where the sample is too small for the level.
    """

    score: Vector
    low: Vector
    high: Vector


class Coverage(NamedTuple):
    """How often held-out bounds lie inside their interval, and how often they should.

    Attributes:
        share: Observed, over random splits.
        expected: `⌈(m + 1) level⌉ / (m + 1)` for a radius from m examples, whatever the distribution.
        standard_error: Of the share in one split about that expectation; the mean of several is no farther off.
    """

    share: float
    expected: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """`exact ≈ exp(curve(log score))`, and `|log exact − curve| ≤ radius` with the probability asked for.

    Attributes:
        curve: From log score to log exact score, increasing.
        radius: Half the width of the interval in logarithms.
    """

    curve: Curve
    radius: float

    def __call__(self, scores: Vector) -> Calibrated:
        """Calibrate; what is not a positive number stays NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(scores)
        predicted = np.full(len(logs), np.nan)
        usable = np.isfinite(logs)
        predicted[usable] = self.curve(logs[usable])
        factor = np.exp(self.radius) if self.radius < 700 else np.inf
        return Calibrated(np.exp(predicted), np.exp(predicted) / factor, np.exp(predicted) * factor)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration of log scores.

    One half of the sample fits the curve; the other gives its errors, of which the ⌈(m + 1) level⌉-th smallest of m is
    the radius. Of a further example that is exchangeable with them, the exact score then lies in the interval with
    probability at least `level`, whatever the curve and the distribution. An exact score is only known to lie between
    two bounds, and the error counts to the farther one.
    Reference: Lei et al., arXiv 1604.04173 (split conformal prediction).

    Attributes:
        form: `proportional` fits one factor, `log_linear` a factor and a power, `monotone` any increasing curve.
        level: Coverage asked for.
        seed: Splits the sample.
    """

    form: Literal["proportional", "log_linear", "monotone"] = "log_linear"
    level: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a level that is no probability."""
        if not 0 < self.level < 1:
            raise ValueError(f"The level of an interval lies between 0 and 1, got level={self.level}.")

    def fit(self, scores: Vector, lower: Vector, upper: Vector) -> Calibrator:
        """Fit to a certified sample: the backend's scores of its examples, and the bounds of their exact scores.

        Raises:
            InfluenceError: Fewer than four examples have a positive score and bounds.
        """
        usable = _usable(scores, lower, upper)
        order = np.random.default_rng(self.seed).permutation(np.flatnonzero(usable))
        if len(order) < 4:
            raise InfluenceError(
                f"Calibration takes at least 4 examples with a positive score and finite bounds, got {len(order)} of "
                f"{len(scores)}. Audit more examples, or score by an estimand that is positive (mean_of_scores)."
            )
        half = (len(order) + 1) // 2
        return self._calibrator(scores, lower, upper, order[:half], order[half:])

    def coverage(self, scores: Vector, lower: Vector, upper: Vector, splits: int = 40) -> Coverage:
        """Share of held-out audited examples whose bounds lie inside their interval, over random splits in three.

        Each split fits the curve to a third, takes the radius from another, and looks at the last. An example whose
        interval is infinite counts as covered.

        Raises:
            InfluenceError: Fewer than six examples have a positive score and bounds.
        """
        usable = np.flatnonzero(_usable(scores, lower, upper))
        if len(usable) < 6:
            raise InfluenceError(
                f"Held-out coverage takes at least 6 examples with a positive score and finite bounds, got {len(usable)} "
                f"of {len(scores)}. Audit more examples."
            )
        shares = []
        for split in range(splits):
            parts = np.array_split(np.random.default_rng((self.seed, split)).permutation(usable), 3)
            found = self._calibrator(scores, lower, upper, parts[0], parts[1])(scores[parts[2]])
            shares.append(np.mean((found.low <= lower[parts[2]]) & (upper[parts[2]] <= found.high)))
        judged, tested = (len(part) for part in np.array_split(usable, 3)[1:])
        expected = min(1.0, math.ceil((judged + 1) * self.level) / (judged + 1))
        # The coverage of a split is Beta distributed, and what is seen of it binomial.
        variance = expected * (1 - expected) * (1 / (judged + 2) + (judged + 1) / ((judged + 2) * tested))
        return Coverage(float(np.mean(shares)), expected, variance**0.5)

    def _calibrator(
        self, scores: Vector, lower: Vector, upper: Vector, fitted: Int[np.ndarray, " a"], judged: Int[np.ndarray, " b"]
    ) -> Calibrator:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs, low, high = np.log(scores), np.log(lower), np.log(upper)
        # A bound of zero says nothing of the logarithm: for the curve such an example counts by its other bound, and one
        # without an upper bound not at all. Both count for the radius, with an infinite error.
        middle = np.where(np.isfinite(low), (low + high) / 2, high)
        told = fitted[np.isfinite(middle[fitted])]
        curve = _curve(self.form, logs[told], middle[told])
        predicted = curve(logs[judged])
        errors = np.sort(np.maximum(high[judged] - predicted, predicted - low[judged]))
        place = math.ceil((len(judged) + 1) * self.level)
        return Calibrator(curve, float(errors[place - 1]) if place <= len(judged) else float("inf"))


def _usable(scores: Vector, lower: Vector, upper: Vector) -> Bool[np.ndarray, " examples"]:
    """Those with a positive score and a certificate, however wide: leaving wide ones out would be no random sample."""
    return np.isfinite(scores) & (scores > 0) & np.isfinite(lower) & (upper > 0)


def _curve(form: str, x: np.ndarray, y: np.ndarray) -> Curve:
    """The curve of a form; medians and least squares in logarithms."""
    if len(x) and form == "monotone":
        return IsotonicRegression(out_of_bounds="clip").fit(x, y).predict
    if not len(x):
        raise InfluenceError("No certificate of the sample has an upper bound: allow more steps, or damp more.")
    centre = float(np.mean(x))
    spread = float(np.sum((x - centre) ** 2))
    if form == "proportional" or spread == 0:
        shift = float(np.median(y - x))
        return lambda logs: logs + shift
    slope, level = float(np.sum((x - centre) * y)) / spread, float(np.mean(y))
    return lambda logs: level + slope * (logs - centre)


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
