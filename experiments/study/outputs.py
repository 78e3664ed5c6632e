"""Encoder or projector output, curvature of the measurement or of the pretraining loss: does the ranking change?

    python -m experiments.study.outputs --data-dir DIR                       (after experiments.study.stability; minutes)

The published study leaves both open. The encoder of the first seed of `stability` scores images in all four
ways, exactly by `Gram`, twice with other noise: the cosine distance at the representation or at the projector's output, by
the curvature of that measurement or of the loss of pretraining with its heads. Losses that couple the images of a batch are
drawn as often for a batch as it has images, so that every matrix is a mean of as many outer products. λ is a tenth of the
mean eigenvalue, each time that of its own matrix. All ways see the same noise, so that nothing but the choice differs, and
the spread of the draws does not limit their agreement.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from experiments.study.small import COLUMNS, Pictures, complete, encoder_of, main, minutes, read, reliability, score
from experiments.study.stability import Stability
from influence_ssl_jax.encoder import Output
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring

CHOICES: dict[str, tuple[Output, Literal["measurement", "pretraining"]]] = {
    "encoder by measurement": ("encoder", "measurement"),
    "encoder by pretraining": ("encoder", "pretraining"),
    "projector by measurement": ("projector", "measurement"),
    "projector by pretraining": ("projector", "pretraining"),
}
STANDARD = "encoder by measurement"
SIZE = 64
"""Images of a batch of the curvature."""


@dataclasses.dataclass(frozen=True)
class Outputs(Stability):
    """Whose encoders are scored: those of `Stability` with the same settings.

    Attributes:
        methods: Which pretrainings.
        compared: Images that are scored.
    """

    methods: tuple[str, ...] = ("SimCLR",)
    compared: int = 200


def scored(scale: Outputs, method: str, choice: str, pictures: Pictures) -> dict[str, np.ndarray]:
    """Score twice in one of the four ways: score and alignment loss, [scorings, images]."""
    output, objective = CHOICES[choice]
    trained = encoder_of(scale.stability(), method, scale.seeds[0], pictures)
    coupled = objective == "pretraining" and not trained.settings.loss.separable
    samples = SIZE if coupled else 1
    curvature = CurvatureSet(objective, "fisher", scale.curvature, SIZE, samples)
    scoring = Scoring(draws=scale.draws, batch_size=64)
    columns = score(trained, pictures, Gram(), scoring, curvature, scale.compared, output, scorings=2)
    return {name: columns[name] for name in list(COLUMNS.values())[:2]}


def compared(scores: dict[str, dict[str, dict[str, np.ndarray]]], resamples: int) -> dict[str, Any]:
    """Return how alike the four ways rank, for every method.

    Args:
        scores: By method and choice, score and alignment loss [scorings, images].
        resamples: Bootstrap draws of images.
    """
    record: dict[str, Any] = {"standard": STANDARD, "found": {}}
    for method, choices in scores.items():
        pairs = {
            f"{one}, {other}": bootstrap(
                spearman, choices[one]["score"].mean(axis=0), choices[other]["score"].mean(axis=0), resamples=resamples
            )
            for one, other in itertools.combinations(choices, 2)
        }
        losses = {
            name: bootstrap(
                spearman, each["score"].mean(axis=0), each["alignment loss"].mean(axis=0), resamples=resamples
            )
            for name, each in choices.items()
        }
        record["found"][method] = {
            "pairs": pairs,
            "reliability": {name: reliability(*each["score"]) for name, each in choices.items()},
            "spearman with the alignment loss of the same output": losses,
        }
        record["images"] = choices[STANDARD]["score"].shape[1]
    return record


def find(scale: Outputs, resamples: int = 500) -> tuple[dict[str, Any], None]:
    """Score in all ways, and compare."""
    pictures = read(scale, "train")
    jobs: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{method}_{choice.replace(' ', '_')}": lambda method=method, choice=choice: scored(
            scale, method, choice, pictures
        )
        for method in scale.methods
        for choice in CHOICES
    }
    done = complete(scale, jobs)
    scores = {
        method: {choice: done[f"{method}_{choice.replace(' ', '_')}"] for choice in CHOICES} for method in scale.methods
    }
    return {"minutes": minutes(done.values()), **compared(scores, resamples)}, None


if __name__ == "__main__":
    main("outputs", Outputs, find)
