"""Analyse the scores of a run: beside baselines, planted truth and attributes."""

import collections
import dataclasses

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from influence_ssl_jax.evaluation.statistics import (
    Estimate,
    auroc,
    average_precision,
    bootstrap,
    explained_variance,
    partial_spearman,
    share,
    spearman,
)
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.scoring.table import LIGHT

COLUMN_NAMES = {
    "score": "influence score",
    "alignment_loss": "alignment loss",
    "gradient_norm": "gradient norm",
    "pixel_variance": "pixel variance",
    "knn_distance": "kNN distance",
}
"""Names of columns in sentences."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of the score with a baseline.

    Attributes:
        column: The column of the baseline.
        name: Its name in sentences.
        spearman: Rank correlation with the score.
        partial: Rank correlation with the score, given all other baselines.
    """

    column: str
    name: str
    spearman: Estimate
    partial: Estimate


def compare(run: ScoredRun, resamples: int) -> list[Comparison]:
    """Compare the score with each baseline, with bootstrap intervals."""
    columns = {name: run.numbers(name) for name in run.baselines}
    comparisons = []
    for name, values in columns.items():
        others = _stack([other for key, other in columns.items() if key != name], len(values))
        whole = bootstrap(spearman, run.score, values, resamples=resamples)
        partial = bootstrap(partial_spearman, run.score, values, others, resamples=resamples)
        comparisons.append(Comparison(name, COLUMN_NAMES[name], whole, partial))
    return comparisons


def explained_by_baselines(run: ScoredRun) -> float:
    """Return the share of variance that all baselines explain together.

    The variance is that of the score's ranks.
    """
    return explained_variance(run.score, _stack([run.numbers(name) for name in run.baselines], len(run.score)))


def signal_share(run: ScoredRun) -> float:
    """Return the reliability: the share of the scores' variance between examples, `1 − mean(se²)/var(score)`.

    It is NaN if the run has no standard errors (one draw).
    """
    if "score_se" not in run.table.column_names:
        return float("nan")
    score, error = run.score, run.numbers("score_se")
    kept = np.isfinite(score) & np.isfinite(error)
    if kept.sum() < 2 or score[kept].var() == 0:
        return float("nan")
    return float(1 - np.mean(error[kept] ** 2) / score[kept].var(ddof=1))


def _stack(columns: list[np.ndarray], rows: int) -> np.ndarray:
    """Stack columns to an array [rows, columns], also if there are none."""
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))


LOW = frozenset({"exact_duplicate", "near_duplicate"})
"""Redundant kinds: low scores were expected for them before any score was seen. For other kinds both ends are shown."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """A column as a detector of a kind of planted examples.

    Attributes:
        name: The score or a baseline.
        auroc: Probability that a planted example is nearer to the suspicious end than an ordinary one.
        average_precision: Mean precision over the planted examples, for the list read from that end.
    """

    name: str
    auroc: float
    average_precision: float


@dataclasses.dataclass(frozen=True)
class Recovery:
    """The recovery of a kind of planted examples at one end.

    Attributes:
        kind: What was planted.
        low: Whether the low end is the suspicious one.
        expected: Whether the end was fixed before any score was seen.
        planted: Number of planted examples.
        chance: Average precision of a random order.
        detectors: The score first, then the baselines.
        lift: Rank correlation of score and kind, given all baselines: what the score adds to them.
    """

    kind: str
    low: bool
    expected: bool
    planted: int
    chance: float
    detectors: tuple[Detector, ...]
    lift: float


def kinds(run: ScoredRun) -> list[str]:
    """Return the kinds of planted examples in alphabetical order."""
    if "planted" not in run.table.column_names:
        return []
    return sorted({str(kind) for kind in run.table["planted"].to_pylist() if kind is not None} - {"none"})


def recoveries(run: ScoredRun) -> list[Recovery]:
    """Measure how well each kind is found.

    It is searched at the expected end, or at both ends.
    """
    ends = [(kind, low) for kind in kinds(run) for low in ((True,) if kind in LOW else (False, True))]
    return [_recovery(run, kind, low) for kind, low in ends]


def _recovery(run: ScoredRun, kind: str, low: bool) -> Recovery:
    """Measure how well a kind is found at one end."""
    planted = members(run, kind)
    kept = np.isfinite(run.score) & (planted | _ordinary(run))
    sign = -1.0 if low else 1.0

    def detector(column: str) -> Detector:
        values: Float[np.ndarray, " kept"] = sign * run.numbers(column)[kept]
        return Detector(COLUMN_NAMES[column], auroc(values, planted[kept]), average_precision(values, planted[kept]))

    given = np.stack([run.numbers(name)[kept] for name in run.baselines] or [np.zeros(kept.sum())], axis=1)
    return Recovery(
        kind=kind,
        low=low,
        expected=kind in LOW,
        planted=int(planted[kept].sum()),
        chance=float(planted[kept].mean()) if kept.any() else float("nan"),
        detectors=tuple(detector(column) for column in ("score", *run.baselines)),
        lift=partial_spearman(sign * run.score[kept], planted[kept].astype(float), given),
    )


def members(run: ScoredRun, kind: str) -> Bool[np.ndarray, " examples"]:
    """Return which examples are of a kind."""
    return np.array([value == kind for value in run.table["planted"].to_pylist()], bool)


def _ordinary(run: ScoredRun) -> Bool[np.ndarray, " examples"]:
    """Return which examples are neither planted nor the original of a copy."""
    ordinary = np.array([value in (None, "none") for value in run.table["planted"].to_pylist()], bool)
    if "original" in run.table.column_names:
        originals = [value for value in run.table["original"].to_pylist() if value is not None and value >= 0]
        ordinary &= ~np.isin(run.table["index"].to_numpy(), originals)
    return ordinary


LEVELS = 12
"""Number of values of an attribute that are listed one by one; rarer values are counted together."""
TRUTH = ("planted", "original")
"""Attributes with the planted truth, which has its own section."""


@dataclasses.dataclass(frozen=True)
class Level:
    """A value of an attribute, with its shares.

    Attributes:
        name: The value.
        count: Number of examples with a score that have it.
        population: Their share of all examples with a score.
        top: Their share of the highest scores.
        bottom: Their share of the lowest scores.
    """

    name: str
    count: int
    population: float
    top: Estimate
    bottom: Estimate


@dataclasses.dataclass(frozen=True)
class Categories:
    """An attribute with few values.

    Attributes:
        name: The attribute.
        levels: Its values, the most frequent first; whole numbers in their order.
    """

    name: str
    levels: tuple[Level, ...]

    @property
    def largest(self) -> float:
        """The end of a scale on which every interval fits."""
        ends = [end for level in self.levels for end in (level.population, level.top.high, level.bottom.high)]
        return 1.03 * max([end for end in ends if np.isfinite(end)], default=1.0)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A numeric attribute.

    Attributes:
        name: The attribute.
        spearman: Its rank correlation with the score.
        population: Its median over all examples with a score.
        top: Its median over the highest scores.
        bottom: Its median over the lowest scores.
    """

    name: str
    spearman: Estimate
    population: float
    top: float
    bottom: float


@dataclasses.dataclass(frozen=True)
class Names:
    """An attribute with too many values to count.

    A name for each example is one.

    Attributes:
        name: The attribute.
        distinct: Number of its values.
    """

    name: str
    distinct: int


def breakdown(run: ScoredRun, tail: int, resamples: int) -> list[Categories | Quantity | Names]:
    """Analyse light and the source's attributes in the tails of the score.

    Args:
        run: The scores.
        tail: Number of highest, and of lowest, scores that make up a tail.
        resamples: Number of bootstrap draws for each interval.
    """
    names = dict.fromkeys([*LIGHT, *run.record.get("attributes", [])])
    present = [name for name in names if name not in TRUTH and name in run.table.column_names]
    return [_attribute(run, name, tail, resamples) for name in present]


def _attribute(run: ScoredRun, name: str, tail: int, resamples: int) -> Categories | Quantity | Names:
    """Analyse one attribute."""
    column, rows = run.table[name], run.ranking()
    values = [str(value) if value is not None else "(none)" for value in column.to_pylist()]
    distinct = len(set(values))
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if number and (distinct > 2 * LEVELS or pa.types.is_floating(column.type)):
        numbers = run.numbers(name)
        medians = [_median(numbers[chosen]) for chosen in (rows, rows[:tail], rows[::-1][:tail])]
        return Quantity(name, bootstrap(spearman, run.score, numbers, resamples=resamples), *medians)
    if distinct > max(LEVELS, len(rows) // 2):
        return Names(name, distinct)
    levels = _levels(values, rows, tail)
    if pa.types.is_integer(column.type):
        levels = tuple(sorted(levels, key=_by_value))
    return Categories(name, levels)


def _by_value(level: Level) -> tuple[bool, int]:
    """Return a key that sorts numbers by value, other texts last."""
    number = level.name.lstrip("-").isdigit()
    return not number, int(level.name) if number else 0


def _levels(values: list[str], rows: np.ndarray, tail: int) -> tuple[Level, ...]:
    """Count an attribute's most frequent values overall and in both tails."""
    ranked = [values[row] for row in rows]
    common = [name for name, _ in collections.Counter(ranked).most_common(LEVELS)]
    rest = len(set(ranked)) - len(common)
    if rest > 0:
        other = f"(other: {rest} values)"
        ranked = [value if value in common else other for value in ranked]
        common.append(other)
    low = max(0, len(ranked) - tail)
    whole, top, bottom = (collections.Counter(part) for part in (ranked, ranked[:tail], ranked[low:]))
    size = min(tail, len(ranked))
    return tuple(
        Level(name, whole[name], whole[name] / len(ranked), share(top[name], size), share(bottom[name], size))
        for name in common
    )


def _median(values: np.ndarray) -> float:
    """Return the median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
