"""Does the perturbation that an image is compared with matter? Section B.2, Table 4.

Published, correlation with the scores by noise: noise of another seed 0.9745, crop 0.9509, flip and blur 0.7447, flip,
jitter and blur 0.7422, flip, jitter and grey 0.7234, flip, grey and blur 0.7197.

    python -m experiments.study.perturbations --data-dir DIR --truth DIR     (after experiments.study.table; minutes)

A part of the random sample; the curvature is that of the table in every case, the gradient that of the perturbation, two
draws each, four of the standard. Beside each correlation stands the ceiling that the spread of the draws leaves: two
perturbations that mean the same could not agree more.

Found (SimCLR of 29 epochs): other noise 0.86 (at most 0.90), every other perturbation 0.12 or less.
"""

from typing import Any

import numpy as np

from experiments.study import results
from experiments.study.table import Study
from experiments.study.variants import Variants, agreement
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman

PUBLISHED = {
    "noise": 0.9745,
    "crop": 0.9509,
    "flip_blur": 0.7447,
    "flip_jitter_blur": 0.7422,
    "flip_jitter_gray": 0.7234,
    "flip_gray_blur": 0.7197,
}


def compared(held: Variants, resamples: int = 500) -> dict[str, Any]:
    """Correlate the scores by every perturbation with the standard ones."""
    curvature, standard = held.standard_curvature, held.draws("standard")
    reference = standard.scores(curvature)
    agreements = {}
    for name, published in PUBLISHED.items():
        drawn = held.draws(name)
        scores = drawn.scores(curvature)
        agreements[name] = {
            "published": published,
            **agreement(scores, reference, resamples),
            "spearman of the alignment losses": bootstrap(
                spearman, drawn.loss.mean(axis=0), standard.loss.mean(axis=0), resamples=resamples
            ),
            "spearman with its own alignment loss": bootstrap(
                spearman, scores.mean(axis=0), drawn.loss.mean(axis=0), resamples=resamples
            ),
            "median score over the standard": float(np.median(scores.mean(axis=0) / reference.mean(axis=0))),
        }
    return {"images": len(held.ids), "found": agreements}


def find(study: Study) -> tuple[dict[str, Any], None]:
    """Score the part of the sample, and compare."""
    return compared(Variants(study)), None


if __name__ == "__main__":
    results.main("perturbations", find)
