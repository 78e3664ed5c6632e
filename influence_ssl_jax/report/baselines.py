"""Compare the score with the baselines beside it."""

import dataclasses

import numpy as np

from influence_ssl_jax.evaluation.statistics import Estimate, bootstrap, explained_variance, partial_spearman, spearman
from influence_ssl_jax.report.scored_run import ScoredRun

NAMES = {
    "score": "influence score",
    "alignment_loss": "alignment loss",
    "gradient_norm": "gradient norm",
    "pixel_variance": "pixel variance",
    "knn_distance": "kNN distance",
}
"""How columns are called in sentences."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The score against one baseline.

    Attributes:
        column: The baseline's column.
        name: What it is called.
        spearman: Rank correlation with the score.
        partial: Rank correlation with the score given all the other baselines.
    """

    column: str
    name: str
    spearman: Estimate
    partial: Estimate


def compare(run: ScoredRun, resamples: int) -> list[Comparison]:
    """The score against each baseline, with bootstrap intervals."""
    columns = {name: run.numbers(name) for name in run.baselines}
    found = []
    for name, values in columns.items():
        others = _stacked([other for key, other in columns.items() if key != name], len(values))
        whole = bootstrap(spearman, run.score, values, resamples=resamples)
        partial = bootstrap(partial_spearman, run.score, values, others, resamples=resamples)
        found.append(Comparison(name, NAMES[name], whole, partial))
    return found


def explained_by_baselines(run: ScoredRun) -> float:
    """Share of the variance of the score's ranks that all baselines explain together."""
    return explained_variance(run.score, _stacked([run.numbers(name) for name in run.baselines], len(run.score)))


def signal_share(run: ScoredRun) -> float:
    """Reliability: the share of the scores' variance that is between examples, `1 − mean(se²)/var(score)`.

    NaN where the run has no standard errors (one draw).
    """
    if "score_se" not in run.table.column_names:
        return float("nan")
    score, error = run.score, run.numbers("score_se")
    kept = np.isfinite(score) & np.isfinite(error)
    if kept.sum() < 2 or score[kept].var() == 0:
        return float("nan")
    return float(1 - np.mean(error[kept] ** 2) / score[kept].var(ddof=1))


def _stacked(columns: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))
