"""Are images on a uniform white or black ground over-represented among the highest scores? Figures 5 and B.5.

Published (CIFAR-100): the 400 highest of an SSL encoder show uniform white or black backgrounds, those of a supervised one
show no such trend.

    python -m experiments.study.borders --data-dir DIR --truth DIR           (after experiments.study.table; a minute)

Measure: the frame of the two outermost pixels. Its border is uniform where the standard deviation of the frame's pixels is
below 0.05 (of 1) in every channel; white where its mean is above 0.9 too, black where it is below 0.1. Among the highest
and the lowest 400 of the random sample, and among the same share of it that 400 are of 50,000, beside the share in the
sample; and without a threshold, the rank correlation of the frame's spread and of its mean with the score.

Found (SimCLR of 29 epochs): white and black borders are too rare (0.2 % each) to tell their share at either end from that in
all; the spread of the border goes along with the score by -0.04.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.study import measures, results
from experiments.study.table import Study, Table, images_of
from influence_ssl_jax.evaluation.statistics import bootstrap, share, spearman

SHOWN = 400
PUBLISHED = SHOWN / 50_000
PICTURES = 40


def kinds(table: Table) -> dict[str, np.ndarray]:
    """Return which rows have which border."""
    uniform = table["border_spread"] < measures.UNIFORM
    return {
        "uniform": uniform,
        "white": uniform & (table["border_mean"] > measures.WHITE),
        "black": uniform & (table["border_mean"] < measures.BLACK),
        "uniform, neither": uniform & (np.abs(table["border_mean"] - 0.5) <= 0.4),
    }


def counted(table: Table) -> dict[str, Any]:
    """Return the shares of borders in all, and among the highest and lowest by the score and by its rivals."""
    base = {name: share(int(member.sum()), len(member)) for name, member in kinds(table).items()}
    ends = {}
    sizes = {f"{SHOWN} images": SHOWN, "0.8 %": max(1, round(PUBLISHED * len(table["id"])))}
    for ranking in ("score", "alignment_loss", "gradient_norm"):
        order = np.argsort(-table[ranking], kind="stable")
        for size_name, size in sizes.items():
            for end, rows in {"highest": order[:size], "lowest": order[-size:]}.items():
                ends[f"{ranking}, {end} {size_name}"] = {
                    name: share(int(member[rows].sum()), len(rows)) for name, member in kinds(table).items()
                }
    return {"base": base, "ends": ends}


def find(study: Study, resamples: int = 1000) -> tuple[dict[str, Any], Figure]:
    """Count borders among the highest and lowest, by the score and by its rivals, and show both ends."""
    table = Table.load(study.kept).sample()
    record: dict[str, Any] = {"images": len(table["id"]), **counted(table), "spearman": {}}
    for name in ("border_spread", "border_mean"):
        record["spearman"][name] = bootstrap(spearman, table["score"], table[name], resamples=resamples)
    pixels, order = images_of(study, table["id"]), table.ranking()
    ends = {"highest": order[:PICTURES], "lowest": order[::-1][:PICTURES]}
    shown = [
        (f"{end} scores", pixels[rows], [f"{table['score'][row]:.3g}" for row in rows]) for end, rows in ends.items()
    ]
    return record, results.gallery(shown, 20)


if __name__ == "__main__":
    results.main("borders", find)
