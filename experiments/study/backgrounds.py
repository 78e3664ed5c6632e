"""Are images on a white or black ground over-represented among the highest scores, and of a supervised encoder too?

Figures 5 and B.5. Published (CIFAR-100): the 400 highest of a self-supervised encoder show uniform white or black
backgrounds; those of a supervised one show no such trend.

    python -m experiments.study.backgrounds --data-dir DIR                     (after experiments.study.stability)
    python -m experiments.study.backgrounds --data-dir DIR --images cifar100   (likewise)

The encoders of `stability` and, beside them, supervised ones of the same size, images and seeds, which are trained here. A
border is white or black by the measure of `borders`, in a frame as wide for the image. Given are the shares of such borders
among the highest and the lowest tenth (400 of 4,096 images, nearly) and in all, mean over the seeds, with intervals over
images; and without a threshold the rank correlation of the score with the spread of the border, where a trend towards
uniform borders is a negative one. The same for the alignment loss.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.study import measures, results
from experiments.study.small import Result, main, minutes, read
from experiments.study.stability import Stability, accuracy, encoders
from influence_ssl_jax.evaluation.statistics import spearman

FRAME = 1
"""Pixels of the frame, of an image of 16: as wide as two of 32."""
END = 0.1
"""Share of the images at either end of a ranking."""


@dataclasses.dataclass(frozen=True)
class Backgrounds(Stability):
    """Whose scores are looked at: those of `Stability` with the same settings, and of supervised encoders.

    Attributes:
        methods: Which trainings.
    """

    methods: tuple[str, ...] = ("SimCLR", "Barlow Twins", "BYOL", "supervised")


def compared(trained: dict[str, list[Result]], images: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return how scores go along with borders, for every method.

    Args:
        trained: What each encoder of a method says of the images: every column [scorings, images].
        images: Their pixels.
        resamples: Bootstrap draws of images.
    """
    spread, mean = measures.border(images, FRAME)
    plain = (spread < measures.UNIFORM) & ((mean > measures.WHITE) | (mean < measures.BLACK))
    record: dict[str, Any] = {"images": len(images), "white or black": int(plain.sum()), "found": {}, "accuracy": {}}

    def statistics(plain: np.ndarray, spread: np.ndarray, *rankings: np.ndarray) -> dict[str, float]:
        count = max(1, round(END * len(plain)))
        orders = [np.argsort(-ranking, kind="stable") for ranking in rankings]
        highest = float(np.mean([plain[order[:count]].mean() for order in orders]))
        everywhere = float(plain.mean())
        return {
            "highest": highest,
            "lowest": float(np.mean([plain[order[-count:]].mean() for order in orders])),
            "all": everywhere,
            "highest over all": highest / everywhere if everywhere else float("nan"),
            "spearman with the spread": float(np.mean([spearman(ranking, spread) for ranking in rankings])),
        }

    for method, encoders_of_method in trained.items():
        record["found"][method] = {
            column: results.resampled(
                statistics,
                plain,
                spread,
                *(each[column].mean(axis=0) for each in encoders_of_method),
                resamples=resamples,
            )
            for column in ("score", "alignment loss")
        }
        record["accuracy"][method] = accuracy(encoders_of_method)
    return record


def find(scale: Backgrounds, resamples: int = 500) -> tuple[dict[str, Any], None]:
    """Train and score what is missing, and compare scores with borders."""
    pictures, test = read(scale, "train"), read(scale, "test")
    trained = encoders(scale.stability(), pictures, test)
    by_method = {method: list(of_seed.values()) for method, of_seed in trained.items()}
    record = compared(by_method, pictures.images[: scale.scored], resamples)
    return {"minutes": minutes(each for method in by_method.values() for each in method), **record}, None


if __name__ == "__main__":
    main("backgrounds", Backgrounds, find)
