"""How well scores find what was planted, beside how well each baseline does."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from influence_ssl_jax.evaluation.statistics import auroc, average_precision, partial_spearman
from influence_ssl_jax.report.baselines import NAMES
from influence_ssl_jax.report.scored_run import ScoredRun

LOW = frozenset({"exact_duplicate", "near_duplicate"})
"""Redundant kinds: a *low* score was expected of them before any was seen. Of other kinds both ends are told."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """One column as a detector of one kind.

    Attributes:
        name: The score or a baseline.
        auroc: Probability that a planted example is nearer the suspicious end than an ordinary one.
        average_precision: Mean precision over the planted ones as the list is read from that end.
    """

    name: str
    auroc: float
    average_precision: float


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One kind from one end.

    Attributes:
        kind: What was planted.
        low: Whether the low end is the suspicious one.
        expected: Whether the direction was fixed beforehand.
        planted: How many there are.
        chance: Average precision of a random order.
        detectors: The score first, then the baselines.
        lift: Rank correlation of score and kind given all baselines: what the score adds to them.
    """

    kind: str
    low: bool
    expected: bool
    planted: int
    chance: float
    detectors: tuple[Detector, ...]
    lift: float


def kinds(run: ScoredRun) -> list[str]:
    """The planted kinds, in the order of the alphabet."""
    if "planted" not in run.table.column_names:
        return []
    return sorted({str(kind) for kind in run.table["planted"].to_pylist() if kind is not None} - {"none"})


def recoveries(run: ScoredRun) -> list[Recovery]:
    """Every kind, from the end that was expected or from both."""
    ends = [(kind, low) for kind in kinds(run) for low in ((True,) if kind in LOW else (False, True))]
    return [_recovery(run, kind, low) for kind, low in ends]


def _recovery(run: ScoredRun, kind: str, low: bool) -> Recovery:
    planted = members(run, kind)
    kept = np.isfinite(run.score) & (planted | _ordinary(run))
    sign = -1.0 if low else 1.0

    def detector(column: str) -> Detector:
        values: Float[np.ndarray, " kept"] = sign * run.numbers(column)[kept]
        return Detector(NAMES[column], auroc(values, planted[kept]), average_precision(values, planted[kept]))

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
    """Which examples are of a kind."""
    return np.array([value == kind for value in run.table["planted"].to_pylist()], bool)


def _ordinary(run: ScoredRun) -> Bool[np.ndarray, " examples"]:
    """Neither planted nor repeated by a planted one: an original is as redundant as its copy."""
    ordinary = np.array([value in (None, "none") for value in run.table["planted"].to_pylist()], bool)
    if "original" in run.table.column_names:
        originals = [value for value in run.table["original"].to_pylist() if value is not None and value >= 0]
        ordinary &= ~np.isin(run.table["index"].to_numpy(), originals)
    return ordinary
