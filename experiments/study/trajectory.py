"""What does a score mean as training proceeds?

    python -m experiments.study.trajectory --data-dir DIR                     (an hour of one core, resumable)

One training of each method, with a snapshot of the encoder after some of its epochs; the first is the untrained network.
Every snapshot scores the same images, exactly by `Gram`, twice with other noise. Among the training
images are planted ones: white noise, images of one colour, and copies of other images. Given for every snapshot is where
the planted images stand in the ranking (AUROC of high scores; for copies and their originals of low scores), what the
scores of the other images go along with, and how alike they are to those of the last snapshot and of the one before:
the rank correlation of scorings that share no draw of noise, as snapshots agree about the noise, too.

A method's scores are settled from the first snapshot on after which the rank correlation with the last one, divided by
what the draws leave, stays above 0.9. The learning rate falls to zero over the epochs, so late snapshots differ little for
this reason too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.measures import border
from experiments.study.small import (
    COLUMNS,
    RIVALS,
    Pictures,
    Result,
    Small,
    accuracies,
    across,
    attainable,
    complete,
    main,
    minutes,
    passes,
    place_of,
    read,
    reliability,
    score,
)
from influence_ssl_jax.evaluation.statistics import Estimate, auroc, explained_variance, spearman
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train import load, save

SETTLED = 0.9
"""The share of the attainable rank correlation with the last snapshot above which scores are settled."""
KINDS = {"noise": "high", "one colour": "high", "copies": "low"}
"""Planted images, with the end of the ranking that is asked for."""


@dataclasses.dataclass(frozen=True)
class Trajectory(Small):
    """At which scale encoders are trained, and when they are scored.

    Attributes:
        methods: Which pretrainings.
        snapshots: The epochs after which images are scored.
        seed: That of the encoders and of the planted images.
        planted: Planted images of each kind, which replace training images.
        scored: Other images that are scored.
        curvature: Images that the curvature is averaged over.
    """

    width: int = 8
    train: int = 8192
    epochs: int = 50
    methods: tuple[str, ...] = ("SimCLR", "BYOL", "Barlow Twins")
    snapshots: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    seed: int = 0
    planted: int = 64
    scored: int = 1024
    curvature: int = 512

    def __post_init__(self) -> None:
        """Refuse snapshots that are never taken."""
        if list(self.snapshots) != sorted(set(self.snapshots)) or self.snapshots[-1] != self.epochs:
            raise ValueError(f"Snapshots rise and end with the last of {self.epochs} epochs, got {self.snapshots}.")


def plant(pictures: Pictures, count: int, seed: int) -> Pictures:
    """Return noise, images of one colour and copies in front of the images, as many images in all.

    The copies are of the first images behind them. The last images are left out.
    """
    rng, shape = np.random.default_rng(seed), pictures.images.shape[1:]
    noise = rng.integers(0, 256, (count, *shape), np.uint8)
    colours = np.broadcast_to(rng.integers(0, 256, (count, 1, 1, shape[2]), np.uint8), (count, *shape))
    kept = pictures.of(np.arange(len(pictures.labels) - 3 * count))
    copied = kept.of(np.arange(count))
    labels = np.full(2 * count, -1)  # no class
    return Pictures(
        np.concatenate([noise, colours, copied.images, kept.images]),
        np.concatenate([labels, copied.labels, kept.labels]),
    )


def positives(kind: str, planted: int, count: int) -> np.ndarray:
    """Return which of the scored images are of a planted kind; copies with their originals."""
    number, width = list(KINDS).index(kind), 2 if kind == "copies" else 1
    return (np.arange(count) // planted >= number) & (np.arange(count) // planted < number + width)


def trained(scale: Trajectory, method: str, pictures: Pictures) -> dict[str, Any]:
    """Train one encoder and keep its snapshots."""
    losses = []
    for number, each in enumerate(passes(scale, method, pictures, scale.seed)):
        losses.append(each.history[-1]["loss"] if each.history else np.nan)
        if number in scale.snapshots:
            save(place_of(scale, method, scale.seed, number), each)
    return {"losses": losses}


def scored(scale: Trajectory, method: str, epochs: int, pictures: Pictures, test: Pictures) -> dict[str, Any]:
    """Score the planted images and the first of the others twice: every column [scorings, images]."""
    encoder = load(place_of(scale, method, scale.seed, epochs))
    curvature = CurvatureSet(examples=scale.curvature, batch_size=64)
    scoring = Scoring(draws=scale.draws, batch_size=64)
    columns = score(encoder, pictures, Gram(), scoring, curvature, 3 * scale.planted + scale.scored, scorings=2)
    bank = pictures.of(np.flatnonzero(pictures.labels >= 0))
    return {**columns, **{f"accuracy, {name}": value for name, value in accuracies(encoder, bank, test).items()}}


def follow(scale: Trajectory, snapshots: list[Result], pictures: Pictures, resamples: int) -> dict[str, Any]:
    """Return what the scores of one method's snapshots mean, each estimate with its interval.

    Args:
        scale: The scale.
        snapshots: The columns of every snapshot, in order.
        pictures: The images, planted ones first.
        resamples: Bootstrap draws of images.
    """
    planted = 3 * scale.planted
    count = snapshots[-1]["score"].shape[1]
    kinds = {kind: positives(kind, scale.planted, count) for kind in KINDS}
    copied = np.arange(count) >= planted + scale.planted  # neither planted nor copied
    others = slice(planted, None)
    classes = np.eye(int(pictures.labels.max()) + 1)[pictures.labels[planted:count]]
    spread = border(pictures.images[planted:count])[0]
    last, record = snapshots[-1], []
    for number, each in enumerate(snapshots):
        means = {name: each[name].mean(axis=0) for name in COLUMNS.values()}
        ends = {}
        for kind, members in kinds.items():
            sign, chosen = 1 if KINDS[kind] == "high" else -1, members | copied
            ends[kind] = {
                name: results.resampled(
                    lambda value, member: {"auroc": auroc(value, member)},
                    sign * means[name][chosen], members[chosen], resamples=resamples,
                )["auroc"]
                for name in means
            }  # fmt: skip
        compared = {"the last": last, **({"the one before": snapshots[number - 1]} if number else {})}

        def statistics(chosen: np.ndarray, each=each, compared=compared, means=means) -> dict[str, float]:
            own = means["score"][others][chosen]
            rivals = {name: spearman(own, means[name][others][chosen]) for name in RIVALS}
            snapshots_ = {
                name: across(spearman, each["score"][:, others][:, chosen], other["score"][:, others][:, chosen])
                for name, other in compared.items()
            }
            named = {
                "spread of the border": spearman(own, spread[chosen]),
                "explained by the class": explained_variance(own, classes[chosen][:, 1:]),
            }
            return {**rivals, **snapshots_, **named}

        found = results.resampled(statistics, np.arange(count - planted), resamples=resamples)
        scores = means["score"][others]
        record.append(
            {
                "epochs": scale.snapshots[number],
                "accuracy": {probe: float(each[f"accuracy, {probe}"]) for probe in ("knn", "linear")},
                "auroc": ends,
                "found": found,
                "at most": {
                    name: attainable(each["score"][:, others], other["score"][:, others])
                    for name, other in compared.items()
                },
                "reliability": reliability(*each["score"]),
                "median": float(np.median(scores)),
                "standard deviation of ln": float(np.std(np.log(scores))),
            }
        )
    return {"settled": settled(record), "snapshots": record}


def settled(record: list[dict[str, Any]]) -> int:
    """Return after how many epochs a method's scores are settled."""
    epochs = record[-1]["epochs"]
    for each in reversed(record):
        if not each["found"]["the last"].value >= SETTLED * each["at most"]["the last"]:
            break
        epochs = each["epochs"]
    return epochs


def draw(record: dict[str, Any]) -> Figure:
    """Draw, over the epochs, where planted images stand and what scores go along with, for every method."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    panels = figure.subplots(2, len(record["found"]), sharex=True, sharey="row", squeeze=False)
    for column, (method, found) in enumerate(record["found"].items()):
        epochs = [each["epochs"] for each in found["snapshots"]]
        above, below = panels[:, column]
        for kind, end in KINDS.items():
            estimates = [each["auroc"][kind]["score"] for each in found["snapshots"]]
            _line(above, epochs, estimates, f"{kind}, {end}")
        above.axhline(0.5, color="0.7", lw=0.8)
        for name in ("alignment loss", "gradient norm", "the last"):
            label = "score of the last snapshot" if name == "the last" else name
            _line(below, epochs, [each["found"][name] for each in found["snapshots"]], label)
        below.plot(epochs, [each["at most"]["the last"] for each in found["snapshots"]], "k_", label="at most")
        above.set(title=method, ylim=(-0.02, 1.02))
        below.set(xlabel="epochs", ylim=(-1.02, 1.02))
        below.set_xscale("symlog", linthresh=1)
        below.set_xticks(epochs, [str(each) for each in epochs])
    panels[0, 0].set_ylabel("AUROC of planted images")
    panels[1, 0].set_ylabel("Spearman of the score")
    for row in panels:
        row[-1].legend(fontsize=6)
    return figure


def _line(axes: Axes, epochs: list[int], estimates: list[Estimate], label: str) -> None:
    """Draw estimates with their intervals."""
    values, lows, highs = np.array(estimates, float).T
    (line,) = axes.plot(epochs, values, ".-", ms=4, lw=1, label=label)
    axes.fill_between(epochs, lows, highs, color=line.get_color(), alpha=0.2, lw=0)


def find(scale: Trajectory, resamples: int = 200) -> tuple[dict[str, Any], Figure]:
    """Train, score, follow and draw."""
    pictures, test = plant(read(scale, "train"), scale.planted, scale.seed), read(scale, "test")
    training: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{method}_trained": lambda method=method: trained(scale, method, pictures) for method in scale.methods
    }
    scoring: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{method}_{epochs}": lambda method=method, epochs=epochs: scored(scale, method, epochs, pictures, test)
        for method in scale.methods
        for epochs in scale.snapshots
    }
    began = complete(scale, training)
    done = complete(scale, scoring)
    record = {
        method: follow(scale, [done[f"{method}_{epochs}"] for epochs in scale.snapshots], pictures, resamples)
        for method in scale.methods
    }
    whole = {"minutes": minutes([*began.values(), *done.values()]), "images": scale.scored, "found": record}
    return whole, draw(whole)


if __name__ == "__main__":
    main("trajectory", Trajectory, find)
