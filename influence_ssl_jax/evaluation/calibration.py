"""Bring scores to the exact scale, and measure how far from exact they are."""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from influence_ssl_jax import randomness
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
from influence_ssl_jax.randomness import Stream

Vector = Float[np.ndarray, " examples"]
Curve = Callable[[np.ndarray], np.ndarray]


class Calibrated(NamedTuple):
    """Scores on the scale of the exact ones.

    Attributes:
        score: The calibrated score.
        low: Lower end of its interval.
        high: Upper end; infinite where the sample is too small for the level, and the lower end then as low as scores go.
    """

    score: Vector
    low: Vector
    high: Vector


class Coverage(NamedTuple):
    """How often held-out bounds lie inside their interval, and how often they should.

    Attributes:
        share: Observed, over random splits.
        expected: `⌈(m + 1) level⌉ / (m + 1)` for a radius from m examples of a group, whatever the distribution; the mean
            over groups.
        standard_error: Of the share in one split about that expectation; the mean of several is no farther off.
        lowest: Observed among the held-out examples of the lowest tenth of scores.
        highest: Observed among those of the highest tenth.
        chance_below: How likely one calibration with as many examples is to cover less than the level, over all groups
            together: coverage is `level` on average over audits, and one audit can be below.
        floor: What about 19 of 20 such calibrations cover at least.
    """

    share: float
    expected: float
    standard_error: float
    lowest: float
    highest: float
    chance_below: float
    floor: float


SHARES = (*(k / 10 for k in range(1, 10)), 0.95)
"""Quantiles of the scores that part the groups: the tenths, the highest in two halves."""
UNKNOWN = Coverage(*[float("nan")] * len(Coverage._fields))
"""The coverage of a sample that is too small to hold any of it out."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """`exact ≈ exp(curve(log score))`, and `|log exact − curve| ≤ radius` with the probability asked for in each group.

    Attributes:
        curve: From log score to log exact score, not decreasing.
        edges: Log scores between which the groups lie, ascending: one fewer than there are groups.
        radii: Half the width of the interval in logarithms, for each group.
        counts: Examples that each radius comes from.
        level: Coverage asked for.
        least: A number that no exact score is below: the lower end of an interval of infinite radius.
    """

    curve: Curve
    edges: Float[np.ndarray, " edges"]
    radii: Float[np.ndarray, " groups"]
    counts: Int[np.ndarray, " groups"]
    level: float
    least: float

    def __call__(self, scores: Vector) -> Calibrated:
        """Calibrate; what is not a positive number stays NaN."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            logs = np.log(scores)
            predicted = np.full(len(logs), np.nan)
            usable = np.isfinite(logs)
            predicted[usable] = self.curve(logs[usable])
            radius = self.radii[self.groups(scores)]
            found = np.exp(predicted), np.exp(predicted - radius), np.exp(predicted + radius)
        endless = np.isinf(radius) & usable
        return Calibrated(found[0], np.where(endless, self.least, found[1]), np.where(endless, np.inf, found[2]))

    def groups(self, scores: Vector) -> Int[np.ndarray, " examples"]:
        """The group of each score."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.searchsorted(self.edges, np.log(scores))

    @property
    def expected(self) -> Float[np.ndarray, " groups"]:
        """Coverage of each group, on average over audits: `⌈(m + 1) level⌉ / (m + 1)`, 1 where the radius is infinite."""
        return np.array([min(1.0, _place(count, self.level) / (count + 1)) for count in self.counts.tolist()])


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration of log scores, group by group.

    A fifth of the sample fits the curve; the others are put into groups by their scores and give each group its radius:
    the ⌈(m + 1) level⌉-th smallest of its m errors. Groups are the tenths of the population, the highest cut into two
    halves. Of a further example that is exchangeable with the sample, the exact score then lies in the interval with
    probability at least `level` *in each group*, whatever the curve and the distribution: among the highest and the
    lowest scores too, not on average over all alone. Where a group has fewer examples than a finite radius takes (9 at a
    level of 0.9; some 300 audited examples give every group as many), the sample itself is cut into groups that are as
    small as that allows, and a tenth of the population can lie across two of them.

    The probability is over the audited sample and the further example together. One audit draws one sample, and its
    intervals can cover less: `Coverage.chance_below` and `Coverage.floor` say how often and how far.

    An exact score is only known to lie between two bounds, and the error counts to the farther one. An exact score that
    is not positive has no logarithm: it counts as an infinite error, so that many of them make the radius infinite. The
    curve is fitted by medians: some exact scores that are nearly zero do not move it.
    Reference: Lei et al., arXiv 1604.04173 (split conformal prediction); Vovk et al., Algorithmic Learning in a Random
    World, section 4.5 (Mondrian: by groups); Theil–Sen regression for the curve.

    Attributes:
        form: `proportional` fits one factor, `log_linear` a factor and a power, `monotone` any curve that does not decrease.
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

    def fit(
        self, scores: Vector, lower: Vector, upper: Vector, tenths: Float[np.ndarray, " edges"] | None = None
    ) -> Calibrator:
        """Fit to a certified sample: the backend's scores of its examples, and the bounds of their exact scores.

        Args:
            scores: The backend's scores of the sample.
            lower: Bounds of the exact scores from below.
            upper: Bounds from above.
            tenths: Quantiles at SHARES of the backend's positive scores of all examples, which part the groups; those of the
                sample where None.

        Raises:
            InfluenceError: Fewer than four examples have a positive score and bounds.
        """
        usable = _usable(scores, lower, upper)
        order = randomness.generator(self.seed, Stream.CALIBRATION).permutation(np.flatnonzero(usable))
        if len(order) < 4:
            raise InfluenceError(
                f"Calibration takes at least 4 examples with a positive score and finite bounds, got {len(order)} of "
                f"{len(scores)}. Audit more examples, or score by an estimand that is positive (mean_of_scores)."
            )
        tenths = np.quantile(scores[order], SHARES) if tenths is None else tenths
        return self._calibrator(scores, lower, upper, order, tenths)

    def coverage(self, scores: Vector, lower: Vector, upper: Vector, splits: int = 40) -> Coverage:
        """Share of held-out audited examples whose bounds lie inside their interval, over random splits.

        Each split holds a fifth out and calibrates by the others. An example whose interval is infinite counts as covered.

        Raises:
            InfluenceError: Fewer than six examples have a positive score and bounds.
        """
        usable = np.flatnonzero(_usable(scores, lower, upper))
        if len(usable) < 6:
            raise InfluenceError(
                f"Held-out coverage takes at least 6 examples with a positive score and finite bounds, got {len(usable)} "
                f"of {len(scores)}. Audit more examples."
            )
        low, high = np.quantile(scores[usable], [0.1, 0.9])
        tenths = np.quantile(scores[usable], SHARES)
        held, shares, expected, variances = [], [], [], []
        for split in range(splits):
            order = randomness.generator(self.seed, Stream.COVERAGE, split).permutation(usable)
            out, rest = np.split(order, [max(1, len(order) // 5)])
            made = self._calibrator(scores, lower, upper, rest, tenths)
            found, groups = made(scores[out]), made.groups(scores[out])
            inside = (found.low <= lower[out]) & (upper[out] <= found.high)
            shares.append(np.mean(inside))
            expected.append(np.mean(made.expected[groups]))
            variances.append(_variance(made, np.bincount(groups, minlength=len(made.radii))))
            held.append((scores[out], inside))
        tested, inside = (np.concatenate(part) for part in zip(*held, strict=True))
        whole = self.fit(scores, lower, upper)
        below, floor = _chance_below(whole, np.bincount(whole.groups(scores[usable]), minlength=len(whole.radii)))
        return Coverage(
            float(np.mean(shares)),
            float(np.mean(expected)),
            float(np.mean(variances)) ** 0.5,
            _share(inside[tested <= low]),
            _share(inside[tested >= high]),
            below,
            floor,
        )

    def _calibrator(
        self,
        scores: Vector,
        lower: Vector,
        upper: Vector,
        order: Int[np.ndarray, " sample"],
        tenths: Float[np.ndarray, " edges"],
    ) -> Calibrator:
        """Fit the curve to the first of the sample, take the radii from the rest."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(scores)
            low, high = (np.where(side > 0, np.log(np.maximum(side, 0.0)), -np.inf) for side in (lower, upper))
        fitted, judged = np.split(order, [min((len(order) + 1) // 2, max(10, len(order) // 5))])
        # A bound of zero says nothing of the logarithm: for the curve such an example counts by its other bound, and one
        # without an upper bound not at all. Both count for the radius, with an infinite error.
        middle = np.where(np.isfinite(low), (low + high) / 2, high)
        told = fitted[np.isfinite(middle[fitted])]
        curve = _curve(self.form, logs[told], middle[told])
        predicted = curve(logs[judged])
        errors = np.maximum(high[judged] - predicted, predicted - low[judged])
        errors = np.where(upper[judged] > 0, errors, np.inf)
        edges = _edges(logs[judged], np.log(tenths), self.level)
        members = np.searchsorted(edges, logs[judged])
        radii = [_radius(errors[members == group], self.level) for group in range(len(edges) + 1)]
        least = 0.0 if (lower[order] >= 0).all() else -np.inf
        counts = np.bincount(members, minlength=len(edges) + 1)
        return Calibrator(curve, edges, np.array(radii), counts, self.level, least)


def _usable(scores: Vector, lower: Vector, upper: Vector) -> Bool[np.ndarray, " examples"]:
    """Those with a positive score and a certificate, however wide: leaving some out would be no random sample."""
    return np.isfinite(scores) & (scores > 0) & ~np.isnan(lower) & ~np.isnan(upper)


def _place(count: int, level: float) -> int:
    """`⌈(count + 1) level⌉`, not moved by rounding of the product."""
    return math.ceil((count + 1) * level - 1e-9)


def _radius(errors: np.ndarray, level: float) -> float:
    """The ⌈(m + 1) level⌉-th smallest error; infinite where there are fewer."""
    place = _place(len(errors), level)
    return float(np.sort(errors)[place - 1]) if place <= len(errors) else float("inf")


def _edges(logs: np.ndarray, tenths: np.ndarray, level: float) -> Float[np.ndarray, " edges"]:
    """Where log scores are cut into groups: at the population's tenths, where each then has enough of the sample.

    Else at the sample's own, in sizes `k (m + 1) − 1`, m the fewest examples with a finite radius, at which the expected
    coverage is the level and not more: near a twentieth for the two highest groups, near a tenth from below, and what is
    left over in the middle.
    """
    least = next(m for m in range(1, 10**6) if _place(m, level) <= m)
    if (np.bincount(np.searchsorted(tenths, logs), minlength=11) >= least).all():
        return tenths
    logs = np.sort(logs)

    def size(share: float) -> int:
        return max(1, round((share * len(logs) + 1) / (least + 1))) * (least + 1) - 1

    top, one = size(0.05), size(0.1)
    if len(logs) < 2 * top + one:
        places = np.linspace(0, len(logs), max(1, len(logs) // least) + 1).round().astype(int)[1:-1]
    else:
        below = range(one, len(logs) - 2 * top - least + 1, one)
        places = np.unique([*below, len(logs) - 2 * top, len(logs) - top])
    return (logs[places - 1] + logs[places]) / 2 if len(places) else np.zeros(0)


def _share(inside: Bool[np.ndarray, " some"]) -> float:
    """How many of some examples; NaN of none."""
    return float(np.mean(inside)) if len(inside) else float("nan")


def _variance(made: Calibrator, held_out: np.ndarray) -> float:
    """Variance of the share covered of held-out examples: the coverage of a group is Beta, what is seen of it binomial."""
    expected, m = made.expected, made.counts
    seen = np.where(held_out > 0, (m + 1) / ((m + 2) * np.maximum(held_out, 1)), 0.0)
    each = expected * (1 - expected) * (1 / (m + 2) + seen)
    return float(np.sum((held_out / held_out.sum()) ** 2 * each))


def _chance_below(made: Calibrator, members: np.ndarray) -> tuple[float, float]:
    """How likely one audit's coverage is below the level, and what about 19 of 20 audits cover at least.

    The coverage of a group of m is Beta(k, m + 1 − k), k the place of its radius; the groups' are independent, and their
    mean is taken to be normal.
    """
    place = np.array([_place(count, made.level) for count in made.counts.tolist()])
    finite = place <= made.counts
    a, b = place[finite], (made.counts + 1 - place)[finite]
    weight = members / members.sum()
    mean = float(np.sum(weight[~finite]) + np.sum(weight[finite] * a / (a + b)))
    deviation = float(np.sum(weight[finite] ** 2 * a * b / ((a + b) ** 2 * (a + b + 1)))) ** 0.5
    if deviation == 0:
        return (0.0 if mean >= made.level else 1.0), mean
    return NormalDist(mean, deviation).cdf(made.level), mean - 2 * deviation


def _curve(form: str, x: np.ndarray, y: np.ndarray) -> Curve:
    """The curve of a form, in logarithms: medians, which some far-off points do not move."""
    if not len(x):
        raise InfluenceError("No certificate of the sample has an upper bound: allow more steps, or damp more.")
    slope = 1.0 if form == "proportional" else _slope(x, y)
    shift = float(np.median(y - slope * x))

    def line(logs: np.ndarray) -> np.ndarray:
        return shift + slope * logs

    if form != "monotone":
        return line
    reach = 4 * 1.4826 * float(np.median(np.abs(y - line(x))))
    from sklearn.isotonic import IsotonicRegression  # slow to import

    return IsotonicRegression(out_of_bounds="clip").fit(x, np.clip(y, line(x) - reach, line(x) + reach)).predict


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """The median slope of all pairs (Theil–Sen), not below zero; 1 where no two scores differ."""
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    slopes = (y[j] - y[i])[apart] / (x[j] - x[i])[apart]
    return max(float(np.median(slopes)), 0.0) if len(slopes) else 1.0


_LEAST = 8
"""Examples with a positive score from which one half can be calibrated by the other."""


class Errors(NamedTuple):
    """Quantiles over examples of `|score / exact − 1|`, the exact score taken in the middle of its bounds."""

    median: float
    p90: float


class Deviation(NamedTuple):
    """A score against certified bounds of the exact one.

    Attributes:
        inside: Share of examples whose score lies inside the bounds as it is; of those whose bounds are apart, NaN where
            none are, because an exact score holds no other between its bounds.
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
    scores, lower, upper, loss = (side[kept] for side in (scores, lower, upper, alignment_loss))
    exact, apart = lower / 2 + upper / 2, lower < upper
    ratio, tenth = _ratio(scores, exact), max(1, len(exact) // 10)
    within = int(np.sum((lower <= scores) & (scores <= upper) & apart))
    calibrated, coverage = np.full(0, np.nan), UNKNOWN
    if np.sum(scores > 0) >= _LEAST:
        calibrated = _ratio(_calibrate_halves(scores, lower, upper, calibration), exact)
        coverage = calibration.coverage(*given)
    return Deviation(
        inside=share(within, int(np.sum(apart))),
        raw=_errors(ratio),
        proportional=_errors(_scale_by_median(ratio)),
        calibrated=_errors(calibrated),
        coverage=coverage,
        spearman=bootstrap(spearman, scores, exact),
        partial=bootstrap(partial_spearman, scores, exact, loss[:, None]),
        top=top_overlap(scores, exact, tenth) if len(exact) else float("nan"),
        bottom=bottom_overlap(scores, exact, tenth) if len(exact) else float("nan"),
        examples=len(exact),
    )


def _calibrate_halves(scores: Vector, lower: Vector, upper: Vector, calibration: Calibration) -> Vector:
    """Each half calibrated by the other."""
    found = np.full(len(scores), np.nan)
    order = randomness.generator(calibration.seed, Stream.HELD_OUT).permutation(np.flatnonzero(scores > 0))
    halves = np.array_split(order, 2)
    for own, other in (halves, halves[::-1]):
        found[own] = calibration.fit(scores[other], lower[other], upper[other])(scores[own]).score
    return found


def _ratio(scores: Vector, exact: Vector) -> Vector:
    """Score over exact score; NaN where both are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return scores / exact


def _scale_by_median(ratio: Vector) -> Vector:
    """Ratios over their median, those that are numbers."""
    known = ratio[np.isfinite(ratio)]
    if not len(known) or np.median(known) == 0:
        return np.full(0, np.nan)
    return known / np.median(known)


def _errors(ratio: Vector) -> Errors:
    finite = np.abs(ratio[np.isfinite(ratio)] - 1)
    if not len(finite):
        return Errors(float("nan"), float("nan"))
    return Errors(float(np.median(finite)), float(np.quantile(finite, 0.9)))
