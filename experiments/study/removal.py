"""What does removal do? Figure 6.

Published: a self-supervised encoder improves where the images of the highest scores are removed before training and degrades
without the lowest; a supervised one degrades without either.

    python -m experiments.study.removal --data-dir DIR                       (an hour of one core, resumable)

For every seed an encoder is trained on all images and scores them, exactly by `Gram`; further ones are trained by the same
seed, for as many epochs, without a share of the images: the highest scores, the lowest, the highest alignment losses, or
random ones. Accuracy on test images: of a self-supervised encoder by a linear probe that is fitted to all training images,
the removed ones too, so that only the encoder differs; of a supervised one by its own classifier. Differences are taken
within a seed, which decides first parameters, ranking and random images; brackets hold 95 % intervals by Student's t over
seeds, for the given test images.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.study.small import (
    COLUMNS,
    Pictures,
    Result,
    Small,
    accuracies,
    complete,
    main,
    minutes,
    read,
    score,
    train,
)
from influence_ssl_jax.evaluation.statistics import Estimate
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring

HIGHEST, LOWEST, LOSS, RANDOM = "highest scores", "lowest scores", "highest alignment losses", "random"
RANKINGS = (HIGHEST, LOWEST, LOSS, RANDOM)
PROBES = {"SimCLR": "linear", "BYOL": "linear", "Barlow Twins": "linear", "supervised": "classifier"}
"""Whose accuracy counts, by method."""


@dataclasses.dataclass(frozen=True)
class Removal(Small):
    """At which scale encoders are trained without images.

    Attributes:
        methods: Which trainings.
        seeds: As many encoders of each kind.
        shares: Shares of the images that are removed (published: 5 to 40 %).
        curvature: Images that the curvature is averaged over.
    """

    methods: tuple[str, ...] = ("SimCLR", "supervised")
    seeds: tuple[int, ...] = (0, 42, 123)
    shares: tuple[float, ...] = (0.1, 0.4)
    train: int = 1024
    curvature: int = 256


def removed(scores: Result, ranking: str, share: float, seed: int) -> np.ndarray:
    """Return the rows that are removed.

    Args:
        scores: What the encoder of all images says of each.
        ranking: One of `RANKINGS`.
        share: How many of all.
        seed: Of the random ones.
    """
    count = len(scores["score"])
    if ranking == RANDOM:
        order = np.random.default_rng(seed).permutation(count)
    else:
        values = scores["alignment loss"] if ranking == LOSS else scores["score"]
        order = np.argsort(values if ranking == LOWEST else -values, kind="stable")
    return order[: round(share * count)]


def whole(scale: Removal, method: str, seed: int, pictures: Pictures, test: Pictures) -> dict[str, Any]:
    """Train on all images, score them, and probe."""
    trained = train(scale, method, pictures, seed)
    scoring = Scoring(draws=scale.draws, batch_size=64)
    columns = score(trained, pictures, Gram(), scoring, CurvatureSet(examples=scale.curvature, batch_size=64))
    return {**{name: each[0] for name, each in columns.items()}, **accuracies(trained, pictures, test)}


def without(
    scale: Removal, method: str, seed: int, rows: np.ndarray, pictures: Pictures, test: Pictures
) -> dict[str, Any]:
    """Train without some images, and probe."""
    kept = pictures.of(np.setdiff1d(np.arange(len(pictures.labels)), rows))
    return accuracies(train(scale, method, kept, seed), pictures, test)


def retrained(scale: Removal, pictures: Pictures, test: Pictures) -> dict[str, Result]:
    """Return all encoders, trained where they are missing."""
    jobs: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{method}_{seed}_whole": lambda method=method, seed=seed: whole(scale, method, seed, pictures, test)
        for method in scale.methods
        for seed in scale.seeds
    }
    before = complete(scale, jobs)
    jobs = {}
    for share in sorted(scale.shares, reverse=True):
        for seed in scale.seeds:
            for method in scale.methods:
                for ranking in RANKINGS:
                    rows = removed(before[f"{method}_{seed}_whole"], ranking, share, seed)
                    jobs[f"{method}_{seed}_{ranking.replace(' ', '_')}_{share:g}"] = (
                        lambda method=method, seed=seed, rows=rows: without(scale, method, seed, rows, pictures, test)
                    )
    return before | complete(scale, jobs)


def over_seeds(values: np.ndarray) -> Estimate:
    """Return the mean with Student's 95 % interval."""
    mean, half = float(np.mean(values)), np.nan
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Estimate(mean, mean - half, mean + half)


def compared(scale: Removal, results: dict[str, Result]) -> dict[str, Any]:
    """Return accuracies, and their differences to nothing removed, to random ones, and of the two ends."""
    record: dict[str, Any] = {"images": scale.train, "seeds": list(scale.seeds), "found": {}}
    for method in scale.methods:
        probe = PROBES[method]

        def of(name: str, method: str = method, probe: str = probe) -> np.ndarray:
            return np.array([float(results[f"{method}_{seed}_{name}"][probe]) for seed in scale.seeds])

        base, rows = of("whole"), {}
        for share in scale.shares:
            each = {ranking: of(f"{ranking.replace(' ', '_')}_{share:g}") for ranking in RANKINGS}
            rows[f"{share:g}"] = {
                "accuracy": {ranking: over_seeds(values) for ranking, values in each.items()},
                "less nothing removed": {ranking: over_seeds(values - base) for ranking, values in each.items()},
                "less random": {
                    ranking: over_seeds(values - each[RANDOM]) for ranking, values in each.items() if ranking != RANDOM
                },
                "without the highest less without the lowest": over_seeds(each[HIGHEST] - each[LOWEST]),
            }
        labels = {
            column: float(np.mean([results[f"{method}_{seed}_whole"][column].mean() for seed in scale.seeds]))
            for column in list(COLUMNS.values())[:2]
        }
        record["found"][method] = {"probe": probe, "nothing removed": over_seeds(base), "shares": rows, "means": labels}
    return record


def draw(record: dict[str, Any]) -> Figure:
    """Draw the accuracy against the removed share, by ranking."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(record["found"]))))
    colours = dict(zip(RANKINGS, ("C3", "C0", "C1", "0.4"), strict=True))
    for axes, (method, entry) in zip(panels, record["found"].items(), strict=True):
        for number, (ranking, colour) in enumerate(colours.items()):
            values = [
                entry["nothing removed"],
                *(each["accuracy"][ranking] for each in entry["shares"].values()),
            ]
            places = np.array([0.0, *(float(share) for share in entry["shares"])]) * 100 + 0.4 * (number - 1.5)
            middle, low, high = np.array(values).T
            spread = np.stack([middle - low, high - middle])
            axes.errorbar(places, 100 * middle, 100 * spread, color=colour, marker="o", ms=3, capsize=2, label=ranking)
        axes.set(
            title=f"{method} ({entry['probe']})",
            xlabel="removed, %",
            ylabel="accuracy on test images, %",
        )
    panels[-1].legend(fontsize=7, title="removed", title_fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def find(scale: Removal) -> tuple[dict[str, Any], Figure]:
    """Train, remove, retrain, compare and draw."""
    pictures, test = read(scale, "train"), read(scale, "test")
    results = retrained(scale, pictures, test)
    record = compared(scale, results)
    return {"minutes": minutes(results.values()), **record}, draw(record)


if __name__ == "__main__":
    main("removal", Removal, find)
