"""Measure how scores agree, how well one finds a set, and quantiles."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped, UInt

from influence_ssl_jax import randomness
from influence_ssl_jax.randomness import Stream

Vector = Real[np.ndarray, " examples"]
Members = Bool[np.ndarray, " examples"]
DIGIT, ROUNDS = 16, 4
"""Number of bits that one reading determines, and number of readings that determine all 64."""


class Estimate(NamedTuple):
    """A statistic and the interval of its sampling error.

    Attributes:
        value: The statistic of the data.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the mid-rank of every value in its column.

    There may be no column.
    """
    if values.ndim > 1:
        return np.array([_ranks(column) for column in values.T]).reshape(values.T.shape).T
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(left: Vector, right: Vector) -> float:
    """Compute the rank correlation: Pearson's correlation of mid-ranks.

    Examples are left out if either value is not finite. It is NaN if fewer than three remain or one side is constant.

    Examples:
        >>> import numpy as np
        >>> round(spearman(np.asarray([1, 2, 3, 4]), np.asarray([1, 4, 9, 16])), 6)
        1.0
    """
    kept = np.isfinite(left) & np.isfinite(right)
    return _pearson(_ranks(left[kept]), _ranks(right[kept]))


def partial_spearman(left: Vector, right: Vector, given: Real[np.ndarray, "examples controls"]) -> float:
    """Compute the rank correlation that remains after `given` is regressed out.

    `corr(r_left − Π r_left, r_right − Π r_right)` with `Π` the least-squares projection on `[1, ranks of given]`.
    Values that are not finite and constant sides count as in `spearman`; it is also NaN if `given` explains a side
    entirely.

    Args:
        left: One score.
        right: The other score.
        given: The controls, one column each.

    Examples:
        >>> import numpy as np
        >>> size = np.arange(8.0)
        >>> left, right = size + np.tile([0.0, 3.0], 4), size + np.tile([3.0, 0.0], 4)
        >>> round(partial_spearman(left, right, size[:, None]), 1)  # both grow with the size; the rest is opposite
        -1.0
    """
    kept = np.isfinite(left) & np.isfinite(right) & np.isfinite(given).all(axis=1)
    if kept.sum() < given.shape[1] + 3:
        return float("nan")
    sides = np.column_stack([_ranks(left[kept]), _ranks(right[kept])])
    sides -= sides.mean(axis=0)
    residuals = _residuals(sides, given[kept])
    return _pearson(residuals[:, 0], residuals[:, 1], scale=np.linalg.norm(sides, axis=0))


def explained_variance(left: Vector, given: Real[np.ndarray, "examples controls"]) -> float:
    """Compute the share R² of ranks' variance that other ranks explain.

    It is the share of the variance of the ranks of `left` that a linear function of the ranks of `given` explains.
    Examples with a value that is not finite are left out. It is NaN if `left` is constant or too few examples remain.

    Args:
        left: The score.
        given: The explaining values, one column each.

    Examples:
        >>> import numpy as np
        >>> score = np.asarray([1.0, 2.0, 4.0, 8.0])
        >>> round(explained_variance(score, score[:, None] ** 2), 6)  # the ranks are the same
        1.0
    """
    kept = np.isfinite(left) & np.isfinite(given).all(axis=1)
    ranks = _ranks(left[kept])[:, None]
    total = float(((ranks - ranks.mean()) ** 2).sum()) if len(ranks) else 0.0
    if total == 0 or len(ranks) < given.shape[1] + 3:
        return float("nan")
    return 1 - float((_residuals(ranks - ranks.mean(), given[kept]) ** 2).sum()) / total


def _residuals(sides: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return what remains of each column after `[1, ranks of given]` are regressed out."""
    controls = _ranks(given)
    controls = np.column_stack([np.ones(len(controls)), controls - controls.mean(axis=0)])
    return sides - controls @ np.linalg.lstsq(controls, sides, rcond=None)[0]


def _pearson(left: np.ndarray, right: np.ndarray, scale: np.ndarray | None = None) -> float:
    """Compute the correlation.

    It is NaN if a side varies by no more than rounding relative to `scale`.
    """
    if len(left) < 3:
        return float("nan")
    left, right = left - left.mean(), right - right.mean()
    norms = np.array([np.linalg.norm(left), np.linalg.norm(right)])
    floor = np.zeros(2) if scale is None else 1e-10 * scale
    if (norms <= floor).any():
        return float("nan")
    return float(np.clip(left @ right / norms.prod(), -1.0, 1.0))


def auroc(score: Vector, positive: Members) -> float:
    """Compute the probability that a positive example scores above a negative one.

    Ties count half. Examples whose score is not finite are left out. It is NaN without positives or without negatives.

    Examples:
        >>> import numpy as np
        >>> auroc(np.asarray([0.1, 0.4, 0.3]), np.asarray([False, True, False]))
        1.0
    """
    kept = np.isfinite(score)
    if len(np.unique(positive[kept])) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score  # slow to import

    return float(roc_auc_score(positive[kept], score[kept]))


def average_precision(score: Vector, positive: Members) -> float:
    """Compute the mean precision over the positives, reading from the highest score.

    A random order gives about the share of positives. Examples whose score is not finite are left out; it is NaN
    without positives.

    Examples:
        >>> import numpy as np
        >>> average_precision(np.asarray([0.9, 0.8, 0.1]), np.asarray([True, False, False]))
        1.0
    """
    kept = np.isfinite(score)
    if not positive[kept].any():
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive[kept], score[kept]))


def top_overlap(left: Vector, right: Vector, k: int) -> float:
    """Compute the share of the `k` highest common to two scores.

    Ties are ordered by position.

    Args:
        left: One score.
        right: The other score.
        k: How many of each.

    Raises:
        ValueError: `k` is not between 1 and the number of examples that are finite on both sides.

    Examples:
        >>> import numpy as np
        >>> top_overlap(np.asarray([4, 3, 2, 1]), np.asarray([4, 1, 3, 2]), k=2)
        0.5
    """
    kept = np.isfinite(left) & np.isfinite(right)
    if not 1 <= k <= kept.sum():
        raise ValueError(f"the overlap of the top k needs 1 <= k <= {kept.sum()} finite examples, got k={k}.")
    sets = [set(np.argsort(-side[kept].astype(float), kind="stable")[:k].tolist()) for side in (left, right)]
    return len(sets[0] & sets[1]) / k


def bottom_overlap(left: Vector, right: Vector, k: int) -> float:
    """Compute the share of the `k` lowest common to two scores.

    Ties are ordered by position.

    Examples:
        >>> import numpy as np
        >>> bottom_overlap(np.asarray([4, 3, 2, 1]), np.asarray([4, 3, 1, 2]), k=2)
        1.0
    """
    return top_overlap(-left.astype(float), -right.astype(float), k)


def bootstrap(
    statistic: Callable[..., float],
    *samples: Shaped[np.ndarray, "examples *_"],
    seed: int = 0,
    resamples: int = 200,
    level: float = 0.95,
) -> Estimate:
    """Compute a statistic and its percentile-bootstrap interval over examples.

    A resample draws the same examples from every one of `samples`. Resamples on which the statistic is undefined (for
    example without a positive) are left out.

    Args:
        statistic: A function of the samples.
        *samples: Arrays with one row for each example.
        seed: The seed of the resamples.
        resamples: Number of resamples.
        level: Coverage of the interval.

    Examples:
        >>> import numpy as np
        >>> mean = bootstrap(lambda values: float(values.mean()), np.arange(10.0))
        >>> mean.value, mean.low < mean.value < mean.high
        (4.5, True)
    """
    generator = randomness.generator(seed, Stream.BOOTSTRAP)
    size = len(samples[0])
    drawn = np.array(
        [
            statistic(*(sample[chosen] for sample in samples))
            for chosen in (generator.integers(size, size=size) for _ in range(resamples if size else 0))
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(statistic(*samples)), float(low), float(high))


def share(members: int, total: int, level: float = 0.95) -> Estimate:
    """Compute a share with Wilson's score interval.

    The interval holds near 0 and 1 and in small samples.

    Args:
        members: Number of members.
        total: Number of all; NaN if it is 0.
        level: Coverage of the interval.

    Examples:
        >>> [round(float(part), 3) for part in share(1, 10)]
        [0.1, 0.018, 0.404]
    """
    if total == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    from scipy import stats

    interval = stats.binomtest(members, total).proportion_ci(confidence_level=level, method="wilson")
    return Estimate(members / total, float(interval.low), float(interval.high))


def quantiles(
    pieces: Callable[[], Iterable[Float[np.ndarray, " some"]]], shares: Sequence[float]
) -> Float[np.ndarray, " shares"]:
    """Return quantiles of finite numbers in bounded memory.

    They are interpolated as `np.quantile` does. The memory does not grow with the count of the numbers.

    The method is radix selection. The bits of float64 numbers, read as integers, sort like the numbers if the order of the
    negative ones is reversed. A wanted number is found DIGIT bits at a time: each of ROUNDS readings counts the next bits of
    all numbers that begin with the bits found so far.

    Args:
        pieces: The numbers, from the beginning at every call.
        shares: The wanted quantiles, each from 0 to 1.

    Returns:
        One number for each share; NaN if there are no numbers.

    Examples:
        >>> [float(number) for number in quantiles(lambda: [np.array([3.0, 1.0]), np.array([2.0, 10.0])], [0.5, 1.0])]
        [2.5, 10.0]
    """
    count = sum(len(piece) for piece in pieces())
    if not count:
        return np.full(len(shares), np.nan)
    place = np.asarray(shares, float) * (count - 1)
    below = np.floor(place).astype(np.int64)
    ranks, inverse = np.unique(np.append(below, np.minimum(below + 1, count - 1)), return_inverse=True)
    low, high = np.split(_select(pieces, ranks)[inverse], 2)
    part = place - below
    return np.where(part < 0.5, low + (high - low) * part, high - (high - low) * (1 - part))


def _select(
    pieces: Callable[[], Iterable[Float[np.ndarray, " some"]]], ranks: Int[np.ndarray, " ranks"]
) -> Float[np.ndarray, " ranks"]:
    """Return the numbers with the given ranks; 0 is the lowest."""
    left, begun = ranks.copy(), np.zeros(len(ranks), np.uint64)
    for number in range(ROUNDS):
        shift = np.uint64(64 - DIGIT * (number + 1))
        starts, which = np.unique(begun, return_inverse=True)
        counts = np.zeros((len(starts), 2**DIGIT), np.int64)
        for piece in pieces():
            keys = _sortable(piece) >> shift
            for row, start in enumerate(starts):
                digits = keys[keys >> np.uint64(DIGIT) == start] & np.uint64(2**DIGIT - 1)
                counts[row] += np.bincount(digits.astype(np.int64), minlength=2**DIGIT)
        reached = np.cumsum(counts, axis=1)
        digit = np.array([np.searchsorted(reached[row], rank, "right") for row, rank in zip(which, left, strict=True)])
        left -= reached[which, digit] - counts[which, digit]
        begun = (begun << np.uint64(DIGIT)) | digit.astype(np.uint64)
    return _numbers(begun)


def _sortable(numbers: Float[np.ndarray, " some"]) -> UInt[np.ndarray, " some"]:
    """Return integers that sort as the numbers do."""
    bits = np.ascontiguousarray(numbers, np.float64).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _numbers(keys: UInt[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
    """Return the numbers that `_sortable` converted."""
    return np.where(keys >> np.uint64(63), keys & np.uint64((1 << 63) - 1), ~keys).view(np.float64)
