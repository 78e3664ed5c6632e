"""Write and read the results of the study: a JSON file and at most one figure for each question."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy.stats import rankdata

from experiments.study.table import Study
from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole
from influence_ssl_jax.evaluation.statistics import Estimate, auroc, average_precision

DIGITS = 4
"""Significant digits of a number in a result."""


def rounded(value: Any) -> Any:
    """Return numbers with `DIGITS` significant digits, NaN as None, an estimate as [value, low, high], in any nesting."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def write(folder: Path, name: str, record: dict[str, Any]) -> Path:
    """Write a result; returns its place."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}.json"
    out.write_text(json.dumps(rounded(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read a result."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def answer(study: Study, name: str, find: Callable[[Study], tuple[dict[str, Any], Figure | None]]) -> Path:
    """Find a result, with the command that finds it and the minutes that it took, and write it.

    The record of an experiment that reads the table alone is the same every time, but for `minutes`.
    """
    began = time.monotonic()
    record, figure = find(study)
    told = {
        "command": f"python -m experiments.study.{name} --encoder {study.encoder.name} --data-dir DIR --truth DIR",
        "minutes": (time.monotonic() - began) / 60,
    }
    if figure is not None:
        study.figures.mkdir(parents=True, exist_ok=True)
        figure.savefig(study.figures / f"{name}_{study.encoder.name}.png", dpi=72, metadata={"Software": None})
    return write(study.kept, name, {**told, **record})


def main(name: str, find: Callable[[Study], tuple[dict[str, Any], Figure | None]]) -> None:
    """Answer one question from the command line."""
    keep_compiled_programs()
    keep_convolutions_whole()
    print(answer(tyro.cli(Study), name, find).read_text(encoding="utf-8"))


def resampled(
    statistics: Callable[..., dict[str, float]], *samples: np.ndarray, resamples: int = 200, seed: int = 0
) -> dict[str, Estimate]:
    """Compute several statistics with percentile-bootstrap intervals (95 %).

    All statistics are of the same draws of examples.
    """
    generator = np.random.default_rng(seed)
    size = len(samples[0])
    drawn = [
        statistics(*(sample[chosen] for sample in samples))
        for chosen in (generator.integers(size, size=size) for _ in range(resamples))
    ]
    estimates = {}
    for name, value in statistics(*samples).items():
        values = np.array([each[name] for each in drawn])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        estimates[name] = Estimate(value, float(low), float(high))
    return estimates


def auroc_within(ranking: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> float:
    """Compute the probability that a positive one ranks above a negative one of the same group; ties count half."""
    total, pairs = 0.0, 0
    for group in np.unique(groups[positive]):
        inside = groups == group
        count = int(positive[inside].sum()) * int((~positive[inside]).sum())
        if count:
            ranks = rankdata(ranking[inside])[positive[inside]]  # scikit-learn takes ten times as long for few numbers
            total, pairs = total + ranks.sum() - len(ranks) * (len(ranks) + 1) / 2, pairs + count
    return total / pairs if pairs else np.nan


def detection(
    ranking: np.ndarray, positive: np.ndarray, resamples: int = 200, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Return how well the highest of a ranking find the positives: AUROC, average precision, recall at their number.

    Args:
        ranking: Numbers, of which high ones should be positives.
        positive: Which are positives.
        resamples: Bootstrap draws.
        groups: Classes, for an AUROC within them as well, to which differences between them add nothing.
    """
    count = int(positive.sum())

    def statistics(ranking: np.ndarray, positive: np.ndarray, *groups: np.ndarray) -> dict[str, float]:
        both = {"auroc": auroc(ranking, positive), "average_precision": average_precision(ranking, positive)}
        return both | {"auroc within classes": auroc_within(ranking, positive, *groups)} if groups else both

    # Among equal values the order is random: a hash has few distances, and rows are in no neutral order.
    order = np.lexsort((np.random.default_rng(0).random(len(ranking)), -ranking))
    samples = (ranking, positive) if groups is None else (ranking, positive, groups)
    estimates = resampled(statistics, *samples, resamples=resamples)
    return {**estimates, "recall": float(positive[order[:count]].mean()), "positives": count, "images": len(ranking)}


def gallery(rows: Iterable[tuple[str, np.ndarray, list[str]]], across: int) -> Figure:
    """Draw rows of images with a title each and a word under every image."""
    rows = list(rows)
    heights = [-(-len(pictures) // across) for _, pictures, _ in rows]
    figure = Figure(figsize=(across * 0.72, sum(heights) * 0.95 + 0.3 * len(rows)), layout="constrained")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(rows), 1, height_ratios=heights)))
    for part, height, (title, pictures, words) in zip(parts, heights, rows, strict=True):
        part.suptitle(title, fontsize=8, x=0.01, ha="left")
        axes = part.subplots(height, across, squeeze=False).flat
        for each in axes:
            each.set_axis_off()
        for each, picture, word in zip(part.axes, pictures, words, strict=False):
            each.imshow(picture)
            each.set_title(word, fontsize=7, pad=1.5)
    return figure
