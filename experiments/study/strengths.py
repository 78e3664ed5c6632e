"""Does the strength of the noise matter? Section B.3, Figures 10 and 11.

Published: with a larger σ the distribution moves to the right, and all correlations are above 0.9.

    python -m experiments.study.strengths --data-dir DIR --truth DIR         (after experiments.study.table; minutes)

A part of the random sample, the curvature of the table, two draws of each σ, correlated with four draws of σ = 0.2.

Found (SimCLR of 29 epochs): the distribution moves to the right; correlations are 0.39, 0.56, 0.56 and 0.22 at σ of 0.05,
0.1, 0.3 and 0.5, where draws would allow 0.84 and more.
"""

from typing import Any

import numpy as np

from experiments.study import results
from experiments.study.table import Study
from experiments.study.variants import STRENGTHS, Variants, agreement


def compared(held: Variants, resamples: int = 500) -> dict[str, Any]:
    """Correlate the scores of every strength with the standard ones, and follow their size."""
    curvature = held.standard_curvature
    reference = held.draws("standard").scores(curvature)
    comparisons: dict[str, dict[str, Any]] = {"0.2": {"median score": float(np.median(reference.mean(axis=0)))}}
    for sigma in STRENGTHS:
        drawn = held.draws(f"sigma {sigma}")
        scores = drawn.scores(curvature)
        comparisons[str(sigma)] = {
            **agreement(scores, reference, resamples),
            "median score": float(np.median(scores.mean(axis=0))),
            "median alignment loss": float(np.median(drawn.loss)),
        }
    return {"images": len(held.ids), "found": dict(sorted(comparisons.items(), key=lambda pair: float(pair[0])))}


def find(study: Study) -> tuple[dict[str, Any], None]:
    """Score the part of the sample, and compare."""
    return compared(Variants(study)), None


if __name__ == "__main__":
    results.main("strengths", find)
