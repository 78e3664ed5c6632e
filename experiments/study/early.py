"""What do the scores of encoders of three to five epochs say to the same questions?

    python -m experiments.study.early --data-dir DIR                         (a minute)

The tables of `experiments/score_cifar10.py` (10,000 training images, the images that those encoders were trained on), made
by version 0.1 of this package, beside the nearest-neighbour accuracies of the encoders: what borders the
highest and lowest images have, and how the scores are distributed and go along with simpler numbers.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro

from experiments.study import borders, deviation, distribution, measures, results
from experiments.study.beyond_loss import RIVALS
from experiments.study.table import EXPERIMENTS, Study, Table
from influence_ssl_jax.data import Tfds
from influence_ssl_jax.data.examples import Example, read_all
from influence_ssl_jax.evaluation.statistics import bootstrap, explained_variance, spearman

METHODS = {"SimCLR": "simclr", "BYOL": "byol", "Barlow Twins": "barlow_twins"}


def early_table(method: str, pixels: dict[str, np.ndarray]) -> Table:
    """Read a table of before, with borders."""
    file = EXPERIMENTS / "results" / f"scores_{method}_w16_cifar10.parquet"
    held = pq.read_table(file)
    columns = {name: held[name].to_numpy(zero_copy_only=False) for name in held.column_names}
    images = np.stack([pixels[name] for name in columns["id"]])
    columns["border_spread"], columns["border_mean"] = measures.border(images)
    return Table(columns, json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))


def epochs(method: str) -> tuple[int, float]:
    """Return the epochs of an encoder, and its nearest-neighbour accuracy."""
    record = json.loads((EXPERIMENTS / "encoders" / f"{method}_w16_cifar10.json").read_text(encoding="utf-8"))
    last = record["history"][-1]
    return last["epoch"], last["knn"]


def describe(table: Table) -> dict[str, Any]:
    """Return the answers that one table gives."""
    score, every = table["score"].astype(float), np.column_stack([table[name] for name in RIVALS])
    return {
        **borders.counted(table),
        "spearman": {
            name: bootstrap(spearman, score, table[name]) for name in (*RIVALS, "border_spread", "border_mean")
        },
        "explained by the alignment loss": bootstrap(explained_variance, score, table["alignment_loss"][:, None]),
        "explained by all rivals": bootstrap(explained_variance, score, every),
        "distribution": results.resampled(distribution.describe, score),
        "deviation": deviation.parts(score, table["score_se"].astype(float) ** 2, 2),
    }


def run(study: Study) -> Path:
    """Answer for every method, and write the result beside those of the encoders."""
    began = time.monotonic()
    opened = Tfds("cifar10", "train[:10000]", study.data_dir).open()
    pixels = {each.id: each.image for each in read_all(opened, range(len(opened))) if isinstance(each, Example)}
    encoders = {}
    for title, method in METHODS.items():
        trained, accuracy = epochs(method)
        encoders[title] = {"epochs": trained, "knn": accuracy, **describe(early_table(method, pixels))}
    record = {"command": "python -m experiments.study.early --data-dir DIR", "images": len(pixels), "found": encoders}
    return results.write(study.results, "early", {**record, "minutes": (time.monotonic() - began) / 60})


if __name__ == "__main__":
    print(run(tyro.cli(Study)).read_text(encoding="utf-8"))
