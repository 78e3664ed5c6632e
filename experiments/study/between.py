"""Do encoders of three methods agree about images? A question that the published study did not ask.

    python -m experiments.study.between                                      (after experiments.study.exactly; seconds)

The tables of the three encoders of CIFAR-10 hold the same random sample. Given are, for every pair of encoders, the rank
correlations of their exact scores and of the rivals of the score. Every encoder saw the same noise, which can only add to
what they share.
"""

import itertools
from pathlib import Path
from typing import Any

import tyro

from experiments.study import exactly, results
from experiments.study.beyond_loss import RIVALS
from experiments.study.table import Study, Table
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman

ENCODERS = {
    "SimCLR": "simclr_torch_w16_cifar10",
    "BYOL": "byol_torch_w16_cifar10",
    "Barlow Twins": "barlow_twins_torch_w16_cifar10",
}
"""The encoders by method."""


def compared(tables: dict[str, Table], resamples: int) -> dict[str, Any]:
    """Return how alike tables of the same images rank.

    Args:
        tables: By method.
        resamples: Bootstrap draws of images.

    Raises:
        ValueError: If they are of different images.
    """
    first = next(iter(tables.values()))
    if any(table["id"].tolist() != first["id"].tolist() for table in tables.values()):
        raise ValueError(f"The tables of {', '.join(tables)} do not hold the same images.")
    pairs = {f"{one}, {other}": (tables[one], tables[other]) for one, other in itertools.combinations(tables, 2)}
    return {
        "images": len(first["id"]),
        "spearman": {
            ranking: {
                name: bootstrap(spearman, one[ranking], other[ranking], resamples=resamples)
                for name, (one, other) in pairs.items()
            }
            for ranking in ("score", *RIVALS)
            if ranking != "pixel_variance"  # a property of the image alone
        },
    }


def run(study: Study, resamples: int = 200) -> Path:
    """Compare, and write the result beside those of the encoders."""
    tables = {method: exactly.load(study.results / name).sample() for method, name in ENCODERS.items()}
    record = {"command": "python -m experiments.study.between", **compared(tables, resamples)}
    return results.write(study.results, "between", record)


if __name__ == "__main__":
    print(run(tyro.cli(Study)).read_text(encoding="utf-8"))
