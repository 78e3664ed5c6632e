"""How far two scores agree, and how well one finds a known set: rank statistics with bootstrap intervals."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Real, Shaped

from influence_ssl_jax import randomness
from influence_ssl_jax.randomness import Stream

Vector = Real[np.ndarray, " examples"]
Members = Bool[np.ndarray, " examples"]


class Estimate(NamedTuple):
    """A statistic with the interval that its sampling leaves open.

    Attributes:
        value: The statistic of the data.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the mid-rank of every value in its column; there may be no column."""
    if values.ndim > 1:
        return np.array([_ranks(column) for column in values.T]).reshape(values.T.shape).T
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(left: Vector, right: Vector) -> float:
    """Rank correlation: Pearson's correlation of mid-ranks.

    Examples where either value is not finite are left out; NaN where fewer than three remain or one side is constant.
    """
    kept = np.isfinite(left) & np.isfinite(right)
    return _pearson(_ranks(left[kept]), _ranks(right[kept]))


def partial_spearman(left: Vector, right: Vector, given: Real[np.ndarray, "examples controls"]) -> float:
    """Rank correlation that is left once the ranks of `given` are regressed out of both sides.

    `corr(r_left − Π r_left, r_right − Π r_right)` with `Π` the least-squares projection on `[1, ranks of given]`. What
    is not finite or constant counts as in `spearman`; NaN too where `given` explains a side entirely.
    """
    kept = np.isfinite(left) & np.isfinite(right) & np.isfinite(given).all(axis=1)
    if kept.sum() < given.shape[1] + 3:
        return float("nan")
    sides = np.column_stack([_ranks(left[kept]), _ranks(right[kept])])
    sides -= sides.mean(axis=0)
    residuals = _residuals(sides, given[kept])
    return _pearson(residuals[:, 0], residuals[:, 1], scale=np.linalg.norm(sides, axis=0))


def explained_variance(left: Vector, given: Real[np.ndarray, "examples controls"]) -> float:
    """Share of the variance of the ranks of `left` that a linear function of the ranks of `given` explains: R².

    What is not finite is left out; NaN where `left` is constant or fewer examples remain than the fit has freedoms.
    """
    kept = np.isfinite(left) & np.isfinite(given).all(axis=1)
    ranks = _ranks(left[kept])[:, None]
    total = float(((ranks - ranks.mean()) ** 2).sum()) if len(ranks) else 0.0
    if total == 0 or len(ranks) < given.shape[1] + 3:
        return float("nan")
    return 1 - float((_residuals(ranks - ranks.mean(), given[kept]) ** 2).sum()) / total


def _residuals(sides: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What is left of each column once `[1, ranks of given]` are regressed out."""
    controls = _ranks(given)
    controls = np.column_stack([np.ones(len(controls)), controls - controls.mean(axis=0)])
    return sides - controls @ np.linalg.lstsq(controls, sides, rcond=None)[0]


def _pearson(left: np.ndarray, right: np.ndarray, scale: np.ndarray | None = None) -> float:
    """Correlation; NaN where a side varies by no more than rounding relative to `scale`."""
    if len(left) < 3:
        return float("nan")
    left, right = left - left.mean(), right - right.mean()
    norms = np.array([np.linalg.norm(left), np.linalg.norm(right)])
    floor = np.zeros(2) if scale is None else 1e-10 * scale
    if (norms <= floor).any():
        return float("nan")
    return float(np.clip(left @ right / norms.prod(), -1.0, 1.0))


def auroc(score: Vector, positive: Members) -> float:
    """Probability that a positive example scores above a negative one, ties counted half.

    Examples whose score is not finite are left out; NaN where positives or negatives are missing.
    """
    kept = np.isfinite(score)
    if len(np.unique(positive[kept])) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score  # slow to import

    return float(roc_auc_score(positive[kept], score[kept]))


def average_precision(score: Vector, positive: Members) -> float:
    """Mean precision over the positives as the list is read from the highest score; a random list gives their share.

    Examples whose score is not finite are left out; NaN where positives are missing.
    """
    kept = np.isfinite(score)
    if not positive[kept].any():
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive[kept], score[kept]))


def top_overlap(left: Vector, right: Vector, k: int) -> float:
    """Share of the `k` highest of `left` that are among the `k` highest of `right`; ties by position.

    Raises:
        ValueError: `k` is not between 1 and the number of examples that are finite on both sides.
    """
    kept = np.isfinite(left) & np.isfinite(right)
    if not 1 <= k <= kept.sum():
        raise ValueError(f"the overlap of the top k needs 1 <= k <= {kept.sum()} finite examples, got k={k}.")
    sets = [set(np.argsort(-side[kept].astype(float), kind="stable")[:k].tolist()) for side in (left, right)]
    return len(sets[0] & sets[1]) / k


def bottom_overlap(left: Vector, right: Vector, k: int) -> float:
    """Share of the `k` lowest of `left` that are among the `k` lowest of `right`; ties by position."""
    return top_overlap(-left.astype(float), -right.astype(float), k)


def bootstrap(
    statistic: Callable[..., float],
    *samples: Shaped[np.ndarray, "examples *_"],
    seed: int = 0,
    resamples: int = 200,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap over examples: the same examples are drawn from every one of `samples`.

    Draws on which the statistic is undefined (no positive drawn) are left out.
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
    """A share with Wilson's score interval, which is sensible at 0 and 1 and in small samples; NaN of nothing."""
    if total == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    from scipy import stats

    interval = stats.binomtest(members, total).proportion_ci(confidence_level=level, method="wilson")
    return Estimate(members / total, float(interval.low), float(interval.high))
