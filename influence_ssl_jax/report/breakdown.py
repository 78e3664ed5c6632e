"""Who is in the tails: each attribute's share among the most and the least influential against its share of all."""

import collections
import dataclasses

import numpy as np
import pyarrow as pa

from influence_ssl_jax.evaluation.statistics import Estimate, bootstrap, share, spearman
from influence_ssl_jax.report.scored_run import ScoredRun

LEVELS = 12
"""Values of an attribute that are listed one by one; the rarer ones are counted together."""
TRUTH = ("planted", "original")
"""Attributes that have a section of their own."""


@dataclasses.dataclass(frozen=True)
class Level:
    """One value of an attribute.

    Attributes:
        name: The value.
        count: Examples that have it, among those with a score.
        population: Their share of all.
        top: Their share of the most influential.
        bottom: Their share of the least influential.
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
        levels: Its values, the most frequent first.
    """

    name: str
    levels: tuple[Level, ...]

    @property
    def largest(self) -> float:
        """The end of the scale that shows every interval."""
        ends = [end for level in self.levels for end in (level.population, level.top.high, level.bottom.high)]
        return 1.03 * max([end for end in ends if np.isfinite(end)], default=1.0)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A numeric attribute.

    Attributes:
        name: The attribute.
        spearman: Its rank correlation with the score.
        population: Its median over all examples with a score.
        top: Its median among the most influential.
        bottom: Its median among the least influential.
    """

    name: str
    spearman: Estimate
    population: float
    top: float
    bottom: float


@dataclasses.dataclass(frozen=True)
class Names:
    """An attribute with a value of its own for nearly every example, which nothing can be counted by.

    Attributes:
        name: The attribute.
        distinct: How many values it has.
    """

    name: str
    distinct: int


def breakdown(run: ScoredRun, tail: int, resamples: int) -> list[Categories | Quantity | Names]:
    """Every attribute of the source, in its order."""
    names = [name for name in run.record.get("attributes", []) if name not in TRUTH and name in run.table.column_names]
    return [_attribute(run, name, tail, resamples) for name in names]


def _attribute(run: ScoredRun, name: str, tail: int, resamples: int) -> Categories | Quantity | Names:
    column, rows = run.table[name], run.ranked()
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
    """Numbers in their order, then what stands for no number."""
    number = level.name.lstrip("-").isdigit()
    return not number, int(level.name) if number else 0


def _levels(values: list[str], rows: np.ndarray, tail: int) -> tuple[Level, ...]:
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
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
