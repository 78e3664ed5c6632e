"""Are scores stable between independent runs? Figure 2.

Published: consistently high correlation between the scores of encoders that differ in their initialisation.

    python -m experiments.study.stability --data-dir DIR                     (three hours of one core, resumable)
    python -m experiments.study.stability --data-dir DIR --images cifar100   (as long again)

Three encoders of each method (seeds 0, 42 and 123: other first parameters, another order, other views) score the same images
that they were trained on, exactly by `Gram`, twice with other noise. Given is the mean over pairs of encoders of the
correlation of their scores under other noise, beside the ceiling: what the spread of the draws alone leaves, the geometric
mean of each encoder's own correlation between its two scorings. Under the same noise two encoders agree about the noise,
too; that correlation stands beside. The same for the rivals.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.small import (
    COLUMNS,
    Pictures,
    Result,
    Small,
    accuracies,
    across,
    attainable,
    complete,
    encoder_of,
    main,
    minutes,
    read,
    score,
)
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring

Repeated = Float[np.ndarray, "scorings images"]


@dataclasses.dataclass(frozen=True)
class Stability(Small):
    """At which scale encoders of several seeds are trained and scored.

    Attributes:
        methods: Which pretrainings.
        seeds: An encoder each.
        scored: Images that are scored, the first of the training images.
        curvature: Images that the curvature is averaged over.
    """

    methods: tuple[str, ...] = ("SimCLR", "Barlow Twins", "BYOL")
    seeds: tuple[int, ...] = (0, 42, 123)
    width: int = 8
    train: int = 10_000
    epochs: int = 30
    scored: int = 4096
    curvature: int = 512

    def stability(self) -> "Stability":
        """Return the settings that the encoders are trained and scored by, without what an experiment adds to them."""
        return Stability(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Stability)})


def scored(scale: Stability, method: str, seed: int, pictures: Pictures, test: Pictures) -> dict[str, Any]:
    """Train, and score twice: every column [scorings, images]."""
    trained = encoder_of(scale, method, seed, pictures)
    curvature = CurvatureSet(examples=scale.curvature, batch_size=64)
    scoring = Scoring(draws=scale.draws, batch_size=64)
    columns = score(trained, pictures, Gram(), scoring, curvature, scale.scored, scorings=2)
    return {**columns, **{f"accuracy, {name}": value for name, value in accuracies(trained, pictures, test).items()}}


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two scorings."""
    return float(np.corrcoef(one, other)[0, 1])


def agreement(encoders: list[Repeated], resamples: int) -> dict[str, Any]:
    """Return how alike encoders score, mean over pairs, and the ceiling that the draws leave.

    Args:
        encoders: What each says, in two scorings.
        resamples: Bootstrap draws of images.
    """

    def statistics(*scorings: np.ndarray) -> dict[str, float]:
        pairs = list(itertools.combinations([each.T for each in scorings], 2))
        rank = float(np.mean([across(spearman, *pair) for pair in pairs]))
        ceiling = float(np.mean([attainable(*pair) for pair in pairs]))
        same = [spearman(*under_one_noise) for pair in pairs for under_one_noise in zip(*pair, strict=True)]
        return {
            "spearman": rank,
            "pearson": float(np.mean([across(pearson, *pair) for pair in pairs])),
            "ceiling": ceiling,
            "spearman over ceiling": rank / ceiling if ceiling > 0 else float("nan"),
            "spearman under the same noise": float(np.mean(same)),
        }

    return results.resampled(statistics, *(each.T for each in encoders), resamples=resamples)


def between(one: list[Repeated], other: list[Repeated]) -> float:
    """Return the mean rank correlation between encoders of two methods."""
    return float(np.mean([across(spearman, a, b) for a in one for b in other]))


def accuracy(encoders_of_method: list[Result]) -> dict[str, list[float]]:
    """Return every encoder's accuracy on test images, by its nearest neighbours and by a linear probe."""
    return {probe: [float(each[f"accuracy, {probe}"]) for each in encoders_of_method] for probe in ("knn", "linear")}


def compared(trained: dict[str, dict[int, Result]], resamples: int) -> dict[str, Any]:
    """Return the record of all encoders by method and seed."""
    record: dict[str, Any] = {"found": {}, "accuracy": {}, "spearman between methods": {}}
    for method, of_seed in trained.items():
        record["found"][method] = {
            name: agreement([each[name] for each in of_seed.values()], resamples) for name in COLUMNS.values()
        }
        record["accuracy"][method] = accuracy(list(of_seed.values()))
    for one, other in itertools.combinations(trained, 2):
        columns = ([each["score"] for each in trained[method].values()] for method in (one, other))
        record["spearman between methods"][f"{one}, {other}"] = between(*columns)
    return {"images": next(iter(next(iter(trained.values())).values()))["score"].shape[1], **record}


def draw(record: dict[str, Any]) -> Figure:
    """Draw the rank correlation between seeds of score and rivals, with interval and ceiling, for every method."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(record["found"]), sharey=True)))
    for axes, (method, estimates) in zip(panels, record["found"].items(), strict=True):
        for place, (name, each) in enumerate(estimates.items()):
            value, low, high = each["spearman"]
            colour = "C3" if name == "score" else "0.3"
            axes.plot([low, high], [place, place], color=colour, lw=1.5)
            axes.plot(value, place, "o", color=colour, ms=4)
            axes.plot(each["ceiling"][0], place, "|", color="C0", ms=10)
        axes.set(title=method, xlabel="Spearman", xlim=(min(0.0, axes.get_xlim()[0]), 1.02))
        axes.set_yticks(range(len(estimates)), list(estimates))
    panels[0].invert_yaxis()
    return figure


def encoders(scale: Stability, pictures: Pictures, test: Pictures) -> dict[str, dict[int, Result]]:
    """Return what every encoder says, by method and seed; those that are missing are trained."""
    jobs: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{method}_{seed}": lambda method=method, seed=seed: scored(scale, method, seed, pictures, test)
        for method in scale.methods
        for seed in scale.seeds
    }
    done = complete(scale, jobs)
    return {method: {seed: done[f"{method}_{seed}"] for seed in scale.seeds} for method in scale.methods}


def find(scale: Stability, resamples: int = 500) -> tuple[dict[str, Any], Figure]:
    """Train, score, compare and draw."""
    trained = encoders(scale, read(scale, "train"), read(scale, "test"))
    record = compared(trained, resamples)
    return {"minutes": minutes(each for of_seed in trained.values() for each in of_seed.values()), **record}, draw(
        record
    )


if __name__ == "__main__":
    main("stability", Stability, find)
