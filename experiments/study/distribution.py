"""How are the scores distributed, and do the published mean and standard deviation fit them in some unit? Section B.1.

Published for CIFAR-10, mean and standard deviation: SimCLR 8.13 and 1.27, BYOL 8.47 and 1.03, Barlow Twins 8.71 and 0.85;
neither unit nor logarithm is stated.

    python -m experiments.study.distribution                                 (after experiments.study.table; seconds)

A change of unit multiplies the scores; a change of the logarithm's base multiplies their logarithms. So a published pair
fits scores as they are if their standard deviation over their mean is the published one, in a unit that is found; and it
fits logarithms to a base b if that of ln(score) is the published one times ln b. The base that fits is given: 2, e and 10
would be plausible. The unit is free, so this asks for the spread alone, and one base should fit all three methods.

Found: base 1.27 fits SimCLR of 29 epochs (standard deviation of ln(score) 0.30; after five epochs 1.30), base 1.9 BYOL and
Barlow Twins.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.study import results
from experiments.study.between import ENCODERS
from experiments.study.table import Study, Table
from influence_ssl_jax.evaluation.statistics import Estimate

PUBLISHED = {"SimCLR": (8.13, 1.27), "BYOL": (8.47, 1.03), "Barlow Twins": (8.71, 0.85)}


def describe(score: np.ndarray) -> dict[str, float]:
    """Return mean, spread and shape of the scores and of their natural logarithms."""
    log = np.log(score)
    return {
        "mean": float(score.mean()),
        "standard deviation": float(score.std()),
        "standard deviation over mean": float(score.std() / score.mean()),
        "skewness": float(stats.skew(score)),
        "mean of ln": float(log.mean()),
        "standard deviation of ln": float(log.std()),
        "skewness of ln": float(stats.skew(log)),
        "highest over median": float(score.max() / np.median(score)),
        "median over lowest": float(np.median(score) / score.min()),
    }


def fit(estimates: dict[str, Estimate], mean: float, spread: float) -> dict[str, Any]:
    """Return the base and the unit with which logarithms of the score have a published mean and standard deviation."""
    base = float(np.exp(estimates["standard deviation of ln"].value / spread))
    return {
        "published": [mean, spread],
        "published standard deviation over mean": spread / mean,
        "base of the logarithm that fits": base,
        "unit of the score with that base": float(np.exp(estimates["mean of ln"].value - mean * np.log(base))),
    }


def find(study: Study, resamples: int = 200) -> tuple[dict[str, Any], Figure]:
    """Describe the scores of the random sample, and draw their distribution."""
    score = Table.load(study.kept).sample()["score"].astype(float)
    score = score[np.isfinite(score) & (score > 0)]
    estimates = results.resampled(describe, score, resamples=resamples)
    fits = {method: fit(estimates, mean, spread) for method, (mean, spread) in PUBLISHED.items()}
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(score, bins=60, color="0.4")
    left.set(xlabel="score", ylabel="images")
    right.hist(np.log(score), bins=60, color="0.4")
    right.set(xlabel="ln(score)")
    own = next((method for method, name in ENCODERS.items() if name == study.encoder.name), None)
    return {"images": len(score), "method": own, "found": estimates, "fits": fits}, figure


if __name__ == "__main__":
    results.main("distribution", find)
