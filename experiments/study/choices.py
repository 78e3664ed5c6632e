"""Do the choices that the published study leaves open change the ranking: curvature, damping, noise, number of draws?

    python -m experiments.study.choices --data-dir DIR --truth DIR           (after experiments.study.table; minutes)

A part of the random sample, four draws of σ = 0.2. Compared with the standard score (sampled Gauss–Newton matrix of the
measurement, λ a tenth of each layer's mean eigenvalue): the empirical Fisher of the same images; λ from a thousandth to
ten times the mean eigenvalue; noise that is the same for all images; and no curvature at all, the squared norm of the
gradient. Each beside its correlation with the alignment loss. Same gradients throughout, so nothing but the choice differs
(but for the noise, which has its own draws).

Found (SimCLR of 29 epochs): λ over four decades 0.97 and more, empirical Fisher 0.93, no curvature 0.79.
"""

from typing import Any

import numpy as np

from experiments.study import results
from experiments.study.table import Study
from experiments.study.variants import RELATIVE, Draws, Variants, agreement, reliability
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman, top_overlap

DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0)


def squared_norms(drawn: Draws) -> np.ndarray:
    """Return ‖Bᵀg‖², which estimates ‖g‖² without bias, of every draw."""
    return np.stack([sum(np.sum(rows**2, axis=1) for rows in each.values()) for each in drawn.coordinates])


def compare(scores: np.ndarray, reference: np.ndarray, loss: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return how alike two scorings of the same draws rank, and what the alignment loss has of it."""
    left, right = scores.mean(axis=0), reference.mean(axis=0)
    top = max(1, len(left) // 10)
    return {
        "spearman": bootstrap(spearman, left, right, resamples=resamples),
        "overlap of the highest tenth": top_overlap(left, right, top),
        "overlap of the lowest tenth": top_overlap(-left, -right, top),
        "spearman with the alignment loss": bootstrap(spearman, left, loss, resamples=resamples),
        "reliability of 4 draws": reliability(scores),
        "standard deviation of ln": float(np.log(left).std()),
    }


def compared(held: Variants, resamples: int = 500) -> dict[str, Any]:
    """Score under every choice, and compare with the standard."""
    standard, curvature, fisher = held.draws("standard"), held.standard_curvature, held.empirical_fisher()
    reference, loss = standard.scores(curvature), standard.loss.mean(axis=0)
    comparisons = {
        f"{name}, λ {value:g}": compare(standard.scores(matrix, value), reference, loss, resamples)
        for name, matrix in {"GGN": curvature, "empirical Fisher": fisher}.items()
        for value in DAMPINGS
    }
    norms = compare(squared_norms(standard), reference, loss, resamples)
    common = held.draws("common").scores(curvature)
    return {
        "images": len(held.ids),
        "standard": f"GGN, λ {RELATIVE:g}",
        "found": {**comparisons, "squared norm of the gradient": norms},
        "common noise": agreement(common, reference, resamples),
        "reliability by draws": {str(draws): reliability(reference[:draws]) for draws in range(2, len(reference) + 1)},
    }


def find(study: Study) -> tuple[dict[str, Any], None]:
    """Score the part of the sample, and compare."""
    return compared(Variants(study)), None


if __name__ == "__main__":
    results.main("choices", find)
