"""Does a score predict what retraining without the image does?

    python -m experiments.study.retraining --data-dir DIR                    (an hour of one core, resumable)

As Feldman and Zhang (arXiv 2008.03703) estimate memorisation, in the manner of self-supervised learning (arXiv 2401.12233):
the images are cut into random halves, many times, and an encoder is trained on each half. The two encoders of a cut share
their seed. The effect of an image is its alignment loss under encoders that were not trained on it, less that under
encoders that were. The alignment loss is the cosine distance of the representations of two views of the pretraining (that
is the target), or of the image and itself with noise of σ 0.2 (which is what a score measures). From each encoder's losses
their mean over all images is subtracted, so that the quality of an encoder as a whole does not count as an effect of an
image.

The scores are those of encoders that were trained on all of the images, by exact inverses of the curvature of all of them
(`Gram`), by LoGra and by EK-FAC. Rivals stand beside them. The ceiling is the root of the reliability of the effect: two
halves of the cuts, correlated and brought to all cuts by Spearman and Brown, mean over random halves.

The verdict is on the target, and the exact score of the encoder of the first seed; `experiments.study.page` states the rule.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.small import (
    RIVALS,
    Pictures,
    Result,
    Small,
    accuracies,
    alignment,
    complete,
    encoder_of,
    main,
    minutes,
    read,
    score,
    train,
)
from influence_ssl_jax.evaluation.statistics import bootstrap, partial_spearman, spearman
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.ihvp.ekfac import EKFAC
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.ihvp.logra import LoGra
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train import Trained

EXACT = "score, exact"
SCORES = (EXACT, "score, LoGra", "score, EK-FAC")
OWN_LOSS = "alignment loss, views of training"
TARGETS = {"training": "views of training", "noise": "noise"}
RANDOM_HALVES = 50


@dataclasses.dataclass(frozen=True)
class Retraining(Small):
    """At which scale encoders are trained on halves.

    Attributes:
        method: Which pretraining.
        cuts: How often the images are cut into two halves, with an encoder each.
        seeds: Seeds of the encoders of all images, whose scores are asked.
        view_draws: Pairs of views that an alignment loss averages.
    """

    method: str = "SimCLR"
    train: int = 256
    test: int = 2000
    epochs: int = 25
    batch_size: int = 16
    cuts: int = 32
    seeds: tuple[int, ...] = (0, 42, 123)
    view_draws: int = 4


def membership(images: int, cuts: int) -> Bool[np.ndarray, "cuts images"]:
    """Return for every cut which images are in its first half; the others are in its second."""
    inside = np.zeros((cuts, images), bool)
    for row in range(cuts):
        inside[row, np.random.default_rng(row).permutation(images)[: images // 2]] = True
    return inside


def effects(
    losses: Float[np.ndarray, "cuts 2 images"], inside: Bool[np.ndarray, "cuts images"]
) -> Float[np.ndarray, "cuts images"]:
    """Return what being left out does to every image's loss, in every cut.

    Args:
        losses: Losses of all images under the encoders of the first and of the second half.
        inside: Which images are in the first half.
    """
    centred = losses - losses.mean(axis=2, keepdims=True)
    return np.where(inside, centred[:, 1] - centred[:, 0], centred[:, 0] - centred[:, 1])


def effect_reliability(cut_effects: Float[np.ndarray, "cuts images"], halves: int = RANDOM_HALVES) -> float:
    """Return the rank correlation with the effects of as many further cuts; zero where halves do not go along."""
    random, between = np.random.default_rng(0), []
    for _ in range(halves):
        order = random.permutation(len(cut_effects))
        parts = cut_effects[order[: len(cut_effects) // 2]], cut_effects[order[len(cut_effects) // 2 :]]
        between.append(spearman(parts[0].mean(axis=0), parts[1].mean(axis=0)))
    mean = max(float(np.mean(between)), 0.0)
    return 2 * mean / (1 + mean)


def slug(name: str) -> str:
    """Return the name of a way to score as part of the name of a file."""
    return name.replace(",", "").replace(" ", "_")


def predictors(trained: dict[str, Result], seed: int) -> Result:
    """Return what an encoder of all images says of each image: scores, then rivals."""
    scores = {name: trained[f"whole_{seed}_{slug(name)}"]["score"].ravel() for name in SCORES}
    rivals = {name: trained[f"whole_{seed}_{slug(EXACT)}"][name].ravel() for name in RIVALS}
    return {**scores, **rivals, OWN_LOSS: trained[f"whole_{seed}_probed"][OWN_LOSS]}


def average(each: list[Result]) -> Result:
    """Return the mean rank over several encoders."""
    return {name: np.mean([columns[name].argsort().argsort() for columns in each], axis=0) for name in each[0]}


def compare(
    cut_effects: Float[np.ndarray, "cuts images"], first: Result, mean: Result, resamples: int
) -> dict[str, Any]:
    """Return how well scores and rivals rank the effect.

    Args:
        cut_effects: The effects.
        first: What the encoder of the first seed says.
        mean: Mean ranks over the encoders of all seeds.
        resamples: Bootstrap draws of images.
    """
    effect, reliable = cut_effects.mean(axis=0), effect_reliability(cut_effects)
    by_image = cut_effects.std(axis=0, ddof=1) / len(cut_effects) ** 0.5
    names = list(first)
    others = [name for name in names if name not in SCORES]

    def statistics(effect: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
        return {name: spearman(effect, column) for name, column in zip(names, columns, strict=True)}

    def gains(effect: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
        ranks = statistics(effect, *columns)
        return {name: ranks[EXACT] - ranks[name] for name in others}

    columns = [first[name] for name in names]
    given = np.column_stack([first[name] for name in others])
    return {
        "mean effect": bootstrap(lambda values: float(values.mean()), effect, resamples=resamples),
        "images whose effect is above twice its standard error": float(np.mean(effect > 2 * by_image)),
        "reliability": reliable,
        "ceiling": reliable**0.5,
        "spearman": results.resampled(statistics, effect, *columns, resamples=resamples),
        "spearman of the exact score less that of": results.resampled(gains, effect, *columns, resamples=resamples),
        "spearman of the mean rank over seeds": results.resampled(
            statistics, effect, *(mean[name] for name in names), resamples=resamples
        ),
        "spearman of the exact score once the rivals are regressed out": bootstrap(
            partial_spearman, first[EXACT], effect, given, resamples=resamples
        ),
    }


def ways(scale: Retraining, images: int) -> dict[str, Callable[[Trained, Pictures], Result]]:
    """Return every way to score, by its name: score and rivals."""
    scoring, curvature = Scoring(draws=scale.draws, batch_size=64), CurvatureSet(examples=images, batch_size=64)
    backends: tuple[Backend, ...] = (Gram(), LoGra(), EKFAC())
    return {
        name: lambda trained, pictures, backend=backend: score(trained, pictures, backend, scoring, curvature)
        for name, backend in zip(SCORES, backends, strict=True)
    }


def probed(scale: Retraining, trained: Trained, pictures: Pictures, test: Pictures) -> dict[str, Any]:
    """Return the alignment loss under the views of training, and accuracies."""
    measured = accuracies(trained, pictures, test)
    return {
        OWN_LOSS: alignment(trained, pictures, "training", scale.view_draws),
        **{f"accuracy, {name}": value for name, value in measured.items()},
    }


def halved(scale: Retraining, pictures: Pictures, chosen: np.ndarray, seed: int) -> dict[str, Any]:
    """Train on some images, and return the alignment losses of all."""
    part = pictures.of(np.flatnonzero(chosen))
    trained = train(scale, scale.method, part, seed)
    return {name: alignment(trained, pictures, name, scale.view_draws) for name in ("training", "noise")}


def plan(scale: Retraining) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """Return all jobs by name: the encoders of halves, and what those of all images say."""
    pictures, test = read(scale, "train"), read(scale, "test")
    inside = membership(len(pictures.labels), scale.cuts)
    scorers = ways(scale, len(pictures.labels))
    jobs: dict[str, Callable[[], Mapping[str, Any]]] = {}
    for cut in range(scale.cuts):
        for half, chosen in enumerate((inside[cut], ~inside[cut])):
            jobs[f"half_{cut:03d}_{half}"] = functools.partial(halved, scale, pictures, chosen, 1000 + cut)
    for seed in scale.seeds:
        whole = functools.partial(encoder_of, scale, scale.method, seed, pictures)
        jobs[f"whole_{seed}_probed"] = lambda whole=whole: probed(scale, whole(), pictures, test)
        for name, by in scorers.items():
            jobs[f"whole_{seed}_{slug(name)}"] = lambda whole=whole, by=by: by(whole(), pictures)
    return jobs


def compared(trained: dict[str, Result], inside: np.ndarray, seeds: Sequence[int], resamples: int) -> dict[str, Any]:
    """Return the record of all results."""
    wholes = [predictors(trained, seed) for seed in seeds]
    halves = [each for name, each in sorted(trained.items()) if name.startswith("half_")]
    first, mean = wholes[0], average(wholes)
    record: dict[str, Any] = {
        "images": inside.shape[1],
        "encoders": len(halves),
        "accuracy": {
            probe: float(np.mean([trained[f"whole_{seed}_probed"][f"accuracy, {probe}"] for seed in seeds]))
            for probe in ("knn", "linear")
        },
        "found": {},
    }
    for views, title in TARGETS.items():
        losses = np.stack([each[views] for each in halves]).reshape(len(inside), 2, -1)
        found_ = effects(losses, inside)
        record["found"][title] = {
            "alignment loss": {
                "trained on": float(np.mean(np.where(inside, losses[:, 0], losses[:, 1]))),
                "left out": float(np.mean(np.where(inside, losses[:, 1], losses[:, 0]))),
            },
            **compare(found_, first, mean, resamples),
        }
    return record


def draw(record: dict[str, Any]) -> Figure:
    """Draw every predictor's rank correlation with the effect, with its interval, below the ceiling."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (title, estimates) in zip(panels, record["found"].items(), strict=True):
        for place, (name, (value, low, high)) in enumerate(estimates["spearman"].items()):
            colour = "C3" if name in SCORES else "0.3"
            axes.plot([low, high], [place, place], color=colour, lw=1.5)
            axes.plot(value, place, "o", color=colour, ms=4)
        axes.axvline(0, color="0.7", lw=0.8)
        axes.axvline(estimates["ceiling"], color="C0", ls="--", lw=1)
        axes.set(title=f"loss of {title}", xlabel="Spearman with the effect")
        axes.set_yticks(range(len(estimates["spearman"])), list(estimates["spearman"]))
    panels[0].invert_yaxis()
    return figure


def find(scale: Retraining, resamples: int = 1000) -> tuple[dict[str, Any], Figure]:
    """Train, score, compare and draw."""
    trained = complete(scale, plan(scale))
    record = compared(trained, membership(scale.train, scale.cuts), scale.seeds, resamples)
    return {"minutes": minutes(trained.values()), **record}, draw(record)


if __name__ == "__main__":
    main("retraining", Retraining, find)
