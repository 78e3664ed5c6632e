"""Do the highest scores of a supervised encoder have uniform white or black backgrounds? Figure 5, second half.

Published: of a self-supervised encoder yes, of a supervised one there is no such trend (CIFAR-100).

    python -m experiments.study.supervised --data-dir DIR                    (after experiments.study.removal; seconds)

The encoders of all images of `removal`. White and black borders are too rare among so few images to be counted, so the
trend is the rank correlation of the score with the spread of the outermost pixels, mean over the seeds; a trend towards
uniform borders is a negative one. The same for the self-supervised encoder beside it, and for the alignment loss.
"""

import time
from typing import Any

import numpy as np

from experiments.study import measures, results
from experiments.study.removal import Removal, wholes
from experiments.study.small import Result, main, read
from influence_ssl_jax.evaluation.statistics import spearman

FRAME = 1
"""Pixels of the frame, of an image of 16: as wide as two of 32."""
HIGHEST = 0.1


def compared(trained: dict[str, list[Result]], images: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return how scores go along with borders, for every method.

    Args:
        trained: What each encoder of a method says of the images.
        images: Their pixels.
        resamples: Bootstrap draws of images.
    """
    spread, mean = measures.border(images, FRAME)
    uniform = spread < measures.UNIFORM
    record: dict[str, Any] = {"images": len(images), "uniform": float(uniform.mean()), "found": {}}
    for method, encoders in trained.items():
        record["found"][method] = {}
        for column in ("score", "alignment loss"):
            values = [each[column] for each in encoders]

            def statistics(spread: np.ndarray, mean: np.ndarray, *values: np.ndarray) -> dict[str, float]:
                return {
                    "spearman with the spread of the border": float(np.mean([spearman(v, spread) for v in values])),
                    "spearman with the mean of the border": float(np.mean([spearman(v, mean) for v in values])),
                }

            count = max(1, round(HIGHEST * len(images)))
            tops = [uniform[np.argsort(-v, kind="stable")[:count]].mean() for v in values]
            record["found"][method][column] = {
                **results.resampled(statistics, spread, mean, *values, resamples=resamples),
                "uniform among the highest tenth": float(np.mean(tops)),
            }
    return record


def find(scale: Removal, resamples: int = 1000) -> tuple[dict[str, Any], None]:
    """Read the scores of `removal`, and compare them with borders."""
    began = time.monotonic()
    pictures, test = read(scale, "train"), read(scale, "test")
    scores = wholes(scale, pictures, test)
    by_method = {method: [scores[f"{method}_{seed}_whole"] for seed in scale.seeds] for method in scale.methods}
    record = compared(by_method, pictures.images, resamples)
    return {**record, "minutes": (time.monotonic() - began) / 60}, None


if __name__ == "__main__":
    main("supervised", Removal, find)
