"""Bring scores to the exact scale and measure how exact they are."""

import dataclasses
import itertools
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
    """Scores on the scale of the exact scores.

    Attributes:
        score: The calibrated score.
        low: Lower end of its interval.
        high: Upper end. If the sample is too small for the level, it is infinite, and the lower end is the least
            possible score.
    """

    score: Vector
    low: Vector
    high: Vector


class Coverage(NamedTuple):
    """The observed and the expected coverage of held-out bounds.

    Bounds are covered if they lie inside their interval.

    Attributes:
        share: The observed share, over random splits.
        expected: `⌈(m + 1) level⌉ / (m + 1)` for a radius from m examples of a group, for any distribution; the mean
            over groups.
        standard_error: Standard error of the share in one split about `expected`; the mean of several splits is at
            least as close.
        lowest: The observed share among the held-out examples of the lowest tenth of scores.
        highest: The same for the highest tenth.
        chance_below: Probability that one calibration with as many examples covers less than the level, over all groups
            together: coverage is `level` on average over audits, and one audit can be below.
        floor: The coverage that about 19 of 20 such calibrations reach.
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
"""The coverage of a sample that is too small to hold out a part of it."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A fitted calibration: `exact ≈ exp(curve(log score))`.

    In each group `|log exact − curve| ≤ radius` with the probability `level`.

    Attributes:
        curve: The function from log score to log exact score; it does not decrease.
        edges: Log scores that separate the groups, ascending: one fewer than groups.
        radii: Half the width of the interval in logarithms, for each group.
        counts: Number of examples behind each radius; a group of few examples shares some with its neighbours.
        level: The requested coverage.
        least: A number below which no exact score is: the lower end of an interval of infinite radius.
    """

    curve: Curve
    edges: Float[np.ndarray, " edges"]
    radii: Float[np.ndarray, " groups"]
    counts: Int[np.ndarray, " groups"]
    level: float
    least: float

    def __call__(self, scores: Vector) -> Calibrated:
        """Calibrate scores; a score that is not a positive number gives NaN."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            logs = np.log(scores)
            predicted = np.full(len(logs), np.nan)
            usable = np.isfinite(logs)
            predicted[usable] = self.curve(logs[usable])
            radius = self.radii[self.groups(scores)]
            scaled = np.exp(predicted), np.exp(predicted - radius), np.exp(predicted + radius)
        endless = np.isinf(radius) & usable
        return Calibrated(scaled[0], np.where(endless, self.least, scaled[1]), np.where(endless, np.inf, scaled[2]))

    def groups(self, scores: Vector) -> Int[np.ndarray, " examples"]:
        """Return the group of each score."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.searchsorted(self.edges, np.log(scores))

    @property
    def expected(self) -> Float[np.ndarray, " groups"]:
        """The coverage of each group on average over audits: `⌈(m + 1) level⌉ / (m + 1)`.

        It is 1 if the radius is infinite.
        """
        return np.array([min(1.0, _place(count, self.level) / (count + 1)) for count in self.counts.tolist()])


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration of log scores, group by group.

    Groups are the tenths of the population, the highest one cut into two halves. In each group some examples of the
    sample give the radius: the ⌈(m + 1) level⌉-th smallest of m errors. The others, usually a fifth of the sample and
    more, fit the curve. m is chosen so that ⌈(m + 1) level⌉ / (m + 1) is the same for every group: at a level of 0.9 it is
    9, 19, 29, …, and the quotient is 0.9. For a further example that is exchangeable with the sample, the exact score
    lies in the interval with this probability *in each group*, for any curve and distribution: also among the highest and
    the lowest scores, and not only on average over all.

    A group with fewer examples than that also takes those with the nearest scores. Its probability is then the same only
    if their errors are distributed like its own. At a level of 0.9 this concerns groups of fewer than 9: either half of
    the highest tenth in a third of all audits of 200, a whole tenth in one of 700. A sample of fewer than 160 does not
    separate the halves of the highest tenth; below 112 there are fifths in place of tenths, below 56 halves, below 28 one
    group, and below 18 intervals are infinite.

    The probability is over the audited sample and the further example together. One audit draws one sample, and its
    intervals can cover less: `Coverage.chance_below` and `Coverage.floor` say how often and how far.

    An exact score is only known to lie between two bounds, and the error is measured to the farther bound: the wider
    the bounds, the further the coverage is above the level. An exact score that is not positive has no logarithm: it
    counts as an infinite error, so many of them make the radius infinite. The curve is fitted by medians, so a few exact
    scores that are nearly zero do not move it. Reference: Lei et al., arXiv 1604.04173 (split conformal prediction);
    Vovk et al., Algorithmic Learning in a Random World, section 4.5 (Mondrian: by groups); Theil–Sen regression for the
    curve.

    Attributes:
        form: `proportional` fits one factor, `log_linear` a factor and a power, `monotone` any curve that does not
            decrease.
        level: The requested coverage.
        seed: The seed of the split of the sample.

    Examples:
        >>> import numpy as np
        >>> exact = np.arange(1.0, 41.0)
        >>> calibrator = Calibration("proportional").fit(exact / 2, exact, exact)
        >>> calibrator(np.asarray([5.0])).score.round(6).tolist()
        [10.0]
    """

    form: Literal["proportional", "log_linear", "monotone"] = "log_linear"
    level: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a level that is not a probability."""
        if not 0 < self.level < 1:
            raise ValueError(f"The level of an interval lies between 0 and 1, got level={self.level}.")

    def fit(
        self, scores: Vector, lower: Vector, upper: Vector, tenths: Float[np.ndarray, " edges"] | None = None
    ) -> Calibrator:
        """Fit to a certified sample's scores and bounds of exact scores.

        Args:
            scores: The backend's scores of the sample.
            lower: Lower bounds of the exact scores.
            upper: Upper bounds.
            tenths: Quantiles at SHARES of the backend's positive scores of all examples, which separate the groups; those of
                the sample if None.

        Raises:
            InfluenceError: Fewer than four examples have a positive score and bounds.
        """
        usable = _usable(scores, lower, upper)
        order = randomness.generator(self.seed, Stream.CALIBRATION).permutation(np.flatnonzero(usable))
        if len(order) < 4:
            raise InfluenceError(
                f"Calibration needs at least 4 examples with a positive score and bounds, got {len(order)} of "
                f"{len(scores)}. Audit more examples, or score by an estimand that is positive (mean_of_scores)."
            )
        tenths = np.quantile(scores[order], SHARES) if tenths is None else tenths
        return self._calibrator(scores, lower, upper, order, tenths)

    def coverage(self, scores: Vector, lower: Vector, upper: Vector, splits: int = 40) -> Coverage:
        """Measure the share of held-out examples whose bounds lie inside their interval.

        Each random split holds out a fifth and calibrates by the others. An example whose interval is infinite counts
        as covered.

        Args:
            scores: The backend's scores of the sample.
            lower: Lower bounds of the exact scores.
            upper: Upper bounds.
            splits: Number of splits.

        Raises:
            InfluenceError: Fewer than six examples have a positive score and bounds.
        """
        usable = np.flatnonzero(_usable(scores, lower, upper))
        if len(usable) < 6:
            raise InfluenceError(
                f"Held-out coverage needs at least 6 examples with a positive score and bounds, got {len(usable)} of "
                f"{len(scores)}. Audit more examples."
            )
        low, high = np.quantile(scores[usable], [0.1, 0.9])
        tenths = np.quantile(scores[usable], SHARES)
        tests, shares, expected, variances = [], [], [], []
        for split in range(splits):
            order = randomness.generator(self.seed, Stream.COVERAGE, split).permutation(usable)
            out, rest = np.split(order, [max(1, len(order) // 5)])
            calibrator = self._calibrator(scores, lower, upper, rest, tenths)
            calibrated, groups = calibrator(scores[out]), calibrator.groups(scores[out])
            inside = (calibrated.low <= lower[out]) & (upper[out] <= calibrated.high)
            shares.append(np.mean(inside))
            expected.append(np.mean(calibrator.expected[groups]))
            variances.append(_variance(calibrator, np.bincount(groups, minlength=len(calibrator.radii))))
            tests.append((scores[out], inside))
        tested, inside = (np.concatenate(part) for part in zip(*tests, strict=True))
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
        """Fit the curve to a part, and take radii from the rest."""
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(scores)
            low, high = (np.where(side > 0, np.log(np.maximum(side, 0.0)), -np.inf) for side in (lower, upper))
        edges = _edges(len(order), np.log(tenths), self.level)
        gives = _choose_judged(np.searchsorted(edges, logs[order]), self.level)
        fitted, judged = order[~gives], order[gives]
        # The logarithm of a bound of zero is unknown: the curve takes the other bound of such an example, and leaves out
        # an example without an upper bound. Both count for the radius, with an infinite error.
        middle = np.where(np.isfinite(low), (low + high) / 2, high)
        known = fitted[np.isfinite(middle[fitted])]
        curve = _curve(self.form, logs[known], middle[known])
        predicted = curve(logs[judged])
        errors = np.maximum(high[judged] - predicted, predicted - low[judged])
        errors = np.where(upper[judged] > 0, errors, np.inf)
        chosen = _choose_nearest(logs[judged], edges, self.level)
        radii = [_radius(errors[members], self.level) for members in chosen]
        least = 0.0 if (lower[order] >= 0).all() else -np.inf
        counts = np.array([len(members) for members in chosen])
        return Calibrator(curve, edges, np.array(radii), counts, self.level, least)


def _usable(scores: Vector, lower: Vector, upper: Vector) -> Bool[np.ndarray, " examples"]:
    """Test which examples have a positive score and bounds, however wide.

    Leaving wide ones out would bias the sample.
    """
    return np.isfinite(scores) & (scores > 0) & ~np.isnan(lower) & ~np.isnan(upper)


def _place(count: int, level: float) -> int:
    """Return `⌈(count + 1) level⌉`, unaffected by rounding of the product."""
    return math.ceil((count + 1) * level - 1e-9)


def _radius(errors: np.ndarray, level: float) -> float:
    """Return the ⌈(m + 1) level⌉-th smallest error.

    It is infinite if there are fewer.
    """
    place = _place(len(errors), level)
    return float(np.sort(errors)[place - 1]) if place <= len(errors) else float("inf")


def _least(level: float) -> int:
    """Return the fewest examples that give a finite radius."""
    return next(m for m in itertools.count(1) if _place(m, level) <= m)


def _for_curve(count: int) -> int:
    """Return how many examples of a sample fit the curve.

    A fifth, and 10 at least.
    """
    return max(10, count // 5)


def _edges(count: int, tenths: np.ndarray, level: float) -> Float[np.ndarray, " edges"]:
    """Return the log scores that separate the groups.

    They are tenths, or every second or fifth of these, or none.

    Args:
        count: Size of the sample.
        tenths: Log scores at SHARES of the population.
        level: The requested coverage.
    """
    least = _least(level)
    step = next((step for step in (1, 2, 5) if (count - _for_curve(count)) * step >= 10 * least), 10)
    return np.append(tenths[step - 1 : 9 : step], tenths[9:] if count >= 16 * (least + 1) else [])


def _choose_judged(members: Int[np.ndarray, " sample"], level: float) -> Bool[np.ndarray, " sample"]:
    """Choose the examples that give the radii; the others fit the curve.

    They are the first `k (least + 1) − 1` of each group, or all of a group that has fewer than `least`. While the curve
    has too few, the largest group gives up `least + 1`, the outermost one of equally large groups: scores far apart
    determine a slope. A sample too small for both has no radii.

    Args:
        members: The group of each example, in a random order.
        level: The requested coverage.
    """
    least, count = _least(level), len(members)
    sizes = np.bincount(members)
    judged = np.where(sizes < least, sizes, (sizes + 1) // (least + 1) * (least + 1) - 1)
    outermost_first = sorted(range(len(sizes)), key=lambda group: min(group, len(sizes) - 1 - group))
    while count - judged.sum() < _for_curve(count) and judged.max() > least:
        judged[max(outermost_first, key=lambda group: judged[group])] -= least + 1
    if count - judged.sum() < min(10, (count + 1) // 2):
        judged[:] = 0
    chosen = np.zeros(count, bool)
    for group, number in enumerate(judged):
        chosen[np.flatnonzero(members == group)[:number]] = True
    return chosen


def _choose_nearest(logs: np.ndarray, edges: np.ndarray, level: float) -> list[Int[np.ndarray, " members"]]:
    """Return the examples behind each group's radius.

    They are its own, and the nearest ones if these are too few.
    """
    groups, ends = np.searchsorted(edges, logs), np.concatenate([[-np.inf], edges, [np.inf]])
    chosen = []
    for group, (low, high) in enumerate(itertools.pairwise(ends)):
        distance = np.where(groups == group, -1.0, np.maximum(low - logs, logs - high))
        wanted = max(int(np.sum(groups == group)), _least(level))
        chosen.append(np.argsort(distance, kind="stable")[:wanted])
    return chosen


def _share(inside: Bool[np.ndarray, " some"]) -> float:
    """Return the share of true values; NaN if there are none."""
    return float(np.mean(inside)) if len(inside) else float("nan")


def _variance(calibrator: Calibrator, held_out: np.ndarray) -> float:
    """Return the variance of the covered share of held-out examples.

    The coverage of a group has a Beta distribution, and what is observed of it is binomial.
    """
    expected, m = calibrator.expected, calibrator.counts
    seen = np.where(held_out > 0, (m + 1) / ((m + 2) * np.maximum(held_out, 1)), 0.0)
    each = expected * (1 - expected) * (1 / (m + 2) + seen)
    return float(np.sum((held_out / held_out.sum()) ** 2 * each))


def _chance_below(calibrator: Calibrator, members: np.ndarray) -> tuple[float, float]:
    """Return the probability of covering less than the level, and a floor.

    About 19 of 20 audits cover at least the floor. The coverage of a group of m is Beta(k, m + 1 − k), with k the place
    of its radius. Groups are taken to be independent, and their mean to be normal.
    """
    place = np.array([_place(count, calibrator.level) for count in calibrator.counts.tolist()])
    finite = place <= calibrator.counts
    a, b = place[finite], (calibrator.counts + 1 - place)[finite]
    weight = members / members.sum()
    mean = float(np.sum(weight[~finite]) + np.sum(weight[finite] * a / (a + b)))
    deviation = float(np.sum(weight[finite] ** 2 * a * b / ((a + b) ** 2 * (a + b + 1)))) ** 0.5
    if deviation == 0:
        return (0.0 if mean >= calibrator.level else 1.0), mean
    return NormalDist(mean, deviation).cdf(calibrator.level), mean - 2 * deviation


def _curve(form: str, x: np.ndarray, y: np.ndarray) -> Curve:
    """Fit the curve of a form, in logarithms.

    It is fitted by medians: a few outliers do not move it.
    """
    if not len(x):
        raise InfluenceError("No certificate of the sample has an upper bound: allow more steps, or take more damping.")
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
    """Return the median slope of all pairs (Theil–Sen), at least zero.

    It is 1 if no two scores differ.
    """
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    slopes = (y[j] - y[i])[apart] / (x[j] - x[i])[apart]
    return max(float(np.median(slopes)), 0.0) if len(slopes) else 1.0


_LEAST = 8
"""Number of examples with a positive score from which one half can calibrate the other."""


class Errors(NamedTuple):
    """Quantiles over examples of `|score / exact − 1|`.

    The exact score is the middle of its bounds.

    Attributes:
        median: The median.
        p90: The 90th percentile.
    """

    median: float
    p90: float


class Deviation(NamedTuple):
    """The deviation of a score from certified bounds of the exact score.

    Attributes:
        inside: Share of examples whose score lies inside the bounds, among those whose bounds differ; NaN if no bounds
            do, because an exact score has nothing between its bounds.
        raw: Relative errors of the score itself.
        proportional: Relative errors after one factor, the median ratio of these same examples.
        calibrated: Relative errors of examples that the calibration has not seen.
        coverage: Share of held-out examples whose bounds lie inside the conformal interval, beside what is expected.
        spearman: Rank correlation with the exact score.
        partial: The same, given the alignment loss: what the score adds to the loss.
        top: Overlap of the highest tenth.
        bottom: Overlap of the lowest tenth.
        examples: Number of examples with a score and bounds.
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
    """Compare a score with the bounds of the exact score.

    Examples without a number on either side are left out. A quantity that needs more examples than there are is NaN.

    Args:
        scores: The scores.
        lower: Lower bounds of the exact scores.
        upper: Upper bounds.
        alignment_loss: The alignment losses, for the partial correlation.
        calibration: How scores are brought to the exact scale.

    Examples:
        >>> import numpy as np
        >>> exact = np.arange(1.0, 41.0)
        >>> compared = deviation(2 * exact, 0.99 * exact, 1.01 * exact, exact[::-1], Calibration())
        >>> round(compared.raw.median, 6), round(compared.spearman.value, 6)  # an error of 100 %, the right order
        (1.0, 1.0)
    """
    sample = (scores, lower, upper)
    kept = np.isfinite(scores) & np.isfinite(lower) & np.isfinite(upper) & np.isfinite(alignment_loss)
    scores, lower, upper, loss = (side[kept] for side in (scores, lower, upper, alignment_loss))
    exact, apart = lower / 2 + upper / 2, lower < upper
    ratio, tenth = _ratio(scores, exact), max(1, len(exact) // 10)
    within = int(np.sum((lower <= scores) & (scores <= upper) & apart))
    calibrated, coverage = np.full(0, np.nan), UNKNOWN
    if np.sum(scores > 0) >= _LEAST:
        calibrated = _ratio(_calibrate_halves(scores, lower, upper, calibration), exact)
        coverage = calibration.coverage(*sample)
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
    """Calibrate each half of the examples by the other half."""
    calibrated = np.full(len(scores), np.nan)
    order = randomness.generator(calibration.seed, Stream.HELD_OUT).permutation(np.flatnonzero(scores > 0))
    halves = np.array_split(order, 2)
    for own, other in (halves, halves[::-1]):
        calibrated[own] = calibration.fit(scores[other], lower[other], upper[other])(scores[own]).score
    return calibrated


def _ratio(scores: Vector, exact: Vector) -> Vector:
    """Return score over exact score; NaN if both are zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return scores / exact


def _scale_by_median(ratio: Vector) -> Float[np.ndarray, " known"]:
    """Divide the finite ratios by their median."""
    known = ratio[np.isfinite(ratio)]
    if not len(known) or np.median(known) == 0:
        return np.full(0, np.nan)
    return known / np.median(known)


def _errors(ratio: Vector) -> Errors:
    """Return the quantiles of the finite relative errors."""
    finite = np.abs(ratio[np.isfinite(ratio)] - 1)
    if not len(finite):
        return Errors(float("nan"), float("nan"))
    return Errors(float(np.median(finite)), float(np.quantile(finite, 0.9)))
