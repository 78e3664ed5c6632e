"""How much of a score is the image's own, and how much the draw's? Proposition 2 on data.

The proposition as published takes the deviation of an influence from its mean to be the spread of the draws around each
image's own mean. The corrected one has a second part, of every image's mean around the mean of all (docs/theory.md).

    python -m experiments.study.deviation                                    (after experiments.study.table; seconds)

Two draws of every image give both parts without a model: the variance over the draws of one image, averaged, and the
variance of the mean of all images less what the draws leave in it (analysis of variance). From these follows the reliability
of a score of K draws, the correlation of two independent scorings, and how many draws a reliability takes.

Found (SimCLR of 29 epochs): 82 % of the variance of one draw's score is between images; 23 draws for a reliability of 0.99.
"""

from typing import Any

import numpy as np

from experiments.study import results
from experiments.study.table import Study, Table

DRAWS = (1, 2, 4, 8)


def parts(score: np.ndarray, squared_error: np.ndarray, draws: int) -> dict[str, float]:
    """Return the variances within and between images, and the reliability by number of draws.

    Args:
        score: Mean over the draws.
        squared_error: Squared standard error of that mean.
        draws: How many.
    """
    within = draws * float(squared_error.mean())
    between = float(score.var(ddof=1)) - within / draws
    reliabilities = {f"reliability of {count} draws": between / (between + within / count) for count in DRAWS}
    return {
        "share of the variance between images": between / (between + within),
        "standard deviation within over mean": float(within**0.5 / score.mean()),
        "standard deviation between over mean": float(max(between, 0.0) ** 0.5 / score.mean()),
        **reliabilities,
        "draws for a reliability of 0.99": float(np.ceil(99 * within / between)) if between > 0 else float("nan"),
    }


def find(study: Study, resamples: int = 200) -> tuple[dict[str, Any], None]:
    """Take the variance of the scores of the random sample apart."""
    table = Table.load(study.kept).sample()
    draws = study.scoring.draws
    score, error = table["score"].astype(float), table["score_se"].astype(float)
    fine = np.isfinite(score) & np.isfinite(error)
    estimates = results.resampled(lambda s, e: parts(s, e, draws), score[fine], error[fine] ** 2, resamples=resamples)
    return {"images": int(fine.sum()), "draws": draws, "found": estimates}, None


if __name__ == "__main__":
    results.main("deviation", find)
