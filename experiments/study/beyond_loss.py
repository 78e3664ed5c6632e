"""Does the score say more than the alignment loss alone? A question that the published study did not ask.

    python -m experiments.study.beyond_loss --data-dir DIR --truth DIR       (after experiments.study.table; a minute)

In the random sample: rank correlation of the score with every rival, the share of the variance of its ranks that rivals
explain, the share that is reproducible at all (from the spread over two draws), and, once the ranks of the alignment loss
are regressed out, what still goes along with the score. Then the images on which score and loss disagree most: the 200
whose rank by score exceeds that by loss most, and the 200 with the opposite, described beside the whole sample.

Found (SimCLR of 29 epochs): Spearman with the alignment loss 0.45, with the gradient's norm 0.80; all rivals explain 64 % of
the variance of the ranks, and 90 % of the score's variance is reproducible.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.table import Study, Table, images_of
from influence_ssl_jax.evaluation.statistics import bootstrap, explained_variance, partial_spearman, spearman

RIVALS = ("alignment_loss", "gradient_norm", "pixel_variance", "knn_distance")
DESCRIBED = (
    "pixel_variance",
    "brightness",
    "contrast",
    "border_spread",
    "border_mean",
    "knn_distance",
    "gradient_norm",
)
DISAGREEING, PICTURES = 200, 40


def reliability(table: Table) -> float:
    """Return the correlation of two independent scorings of as many draws, from the draws' own spread."""
    between = float(np.var(table["score"].astype(float)))
    return 1 - float(np.mean(table["score_se"].astype(float) ** 2)) / between


def mean(values: np.ndarray) -> float:
    """Return the mean, as a statistic to be bootstrapped."""
    return float(values.mean())


def disagreement(table: Table) -> np.ndarray:
    """Return rank by score less rank by loss, as a share of all images."""
    ranks = [np.argsort(np.argsort(table[name], kind="stable"), kind="stable") for name in ("score", "alignment_loss")]
    return (ranks[0] - ranks[1]) / len(ranks[0])


def said(table: Table, resamples: int) -> dict[str, Any]:
    """Return what the score shares with its rivals, and what it goes along with beyond the alignment loss."""
    score, loss = table["score"], table["alignment_loss"][:, None]
    every = np.column_stack([table[name] for name in RIVALS])
    return {
        "reliability of the score": reliability(table),
        "spearman": {name: bootstrap(spearman, score, table[name], resamples=resamples) for name in RIVALS},
        "explained by the alignment loss": bootstrap(explained_variance, score, loss, resamples=resamples),
        "explained by all rivals": bootstrap(explained_variance, score, every, resamples=resamples),
        "partial spearman given the alignment loss": {
            name: bootstrap(partial_spearman, score, table[name], loss, resamples=resamples) for name in DESCRIBED
        },
    }


def find(study: Study, resamples: int = 200) -> tuple[dict[str, Any], Figure]:
    """Compare with the rivals, and show the images that divide score and loss."""
    table = Table.load(study.kept).sample()
    classes = np.unique(table["label"])
    record: dict[str, Any] = {"images": len(table["score"]), **said(table, resamples)}
    apart = disagreement(table)
    order = np.argsort(-apart, kind="stable")
    count = min(DISAGREEING, len(order) // 4)
    ends = {"score above loss": order[:count], "score below loss": order[::-1][:count], "all": order}
    record["mean rank difference"] = {name: float(apart[rows].mean()) for name, rows in ends.items()}
    record["means"] = {
        name: {end: bootstrap(mean, table[name][rows].astype(float), resamples=resamples) for end, rows in ends.items()}
        for name in DESCRIBED
    }
    record["classes"] = {
        end: {str(label): int(np.sum(table["label"][rows] == label)) for label in classes} for end, rows in ends.items()
    }
    pixels = images_of(study, table["id"])
    shown = [
        (f"{end}: difference of ranks", pixels[rows[:PICTURES]], [f"{apart[row]:+.2f}" for row in rows[:PICTURES]])
        for end, rows in ends.items()
        if end != "all"
    ]
    return record, results.gallery(shown, 20)


if __name__ == "__main__":
    results.main("beyond_loss", find)
