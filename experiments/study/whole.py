"""And when every image is scored, exactly? Figures 3 to 5 and B.4 at the published number of images.

    python -m experiments.study.whole --data-dir DIR --truth DIR             (100 minutes of a busy core, resumable)

All 60,000 images of CIFAR-10, test images too, are scored by `Gram`, as in `exactly`, and asked what the random sample of
6,000 is asked elsewhere: how well low scores find judged duplicates, all of them among all training images; how many of the
lowest 5 and 18 of the class have a copy; white and black borders among the highest and lowest 400 of 50,000; where the
highest and the lowest 1,000 sit among the embeddings; what the score shares with its rivals. And what no sample can say:
whether test images, which the encoder was not trained on, have other scores than training images.

Written beside the result: whole.parquet, a row for each image; 16-bit numbers but for score, alignment loss, norm of the
gradient and distances, which have 32.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from experiments.study import results
from experiments.study.beyond_loss import RIVALS, said
from experiments.study.borders import counted
from experiments.study.duplicates import find_judged, lowest_of_class
from experiments.study.exactly import KEPT, settings_of
from experiments.study.separation import SIZES, measure
from experiments.study.table import Study, Table, chosen_ids, describe_images, scored_parts, unit_embeddings
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.evaluation.statistics import auroc, bootstrap, spearman
from influence_ssl_jax.runs.score import score

WIDE = ("score", "alignment_loss", "gradient_norm", "knn_distance", "embedding_distance", "pixels_distance")
NARROW = (
    *KEPT[1:3],
    "bound",
    "pixel_variance",
    "brightness",
    "contrast",
    "border_spread",
    "border_mean",
    "hash_distance",
)
"""Columns that are kept, with 32 and with 16 bits; `bound` is the width of the bounds of the score."""


def scored(study: Study) -> tuple[Table, np.ndarray]:
    """Score every image; returns what is known of it, as it is kept, and embeddings of length 1."""
    folder, source = study.run / "whole", study.source()
    settings = settings_of(study, source, folder / "scores")
    score(settings, Renderer(Console()))
    rows, opened = scored_parts(folder), source.open()
    training = [name for name in opened.ids() if not name.startswith("test")]
    chosen = {**chosen_ids(study), "sample": training}
    known = describe_images(rows, opened, chosen)
    known |= {name: rows[name].to_numpy() for name in KEPT}
    known["bound"] = known["score_hi"] - known["score_lo"]
    marks = {name: np.asarray(known[name]) for name in ("id", "label", *chosen)}
    wide = {name: np.asarray(known[name], np.float32) for name in WIDE}
    narrow = {name: np.asarray(known[name], np.float16) for name in NARROW}
    counts = {name: len(each) for name, each in chosen.items()}
    took = json.loads((folder / "scores" / "run.json").read_text(encoding="utf-8"))["wall_seconds"]
    record = {"minutes": took / 60, "rows": settings.curvature.examples, "chosen": counts}
    return Table({**marks, **wide, **narrow}, record), unit_embeddings(rows)


def asked(table: Table, pairs: list[tuple[str, str, int]], resamples: int) -> dict[str, Any]:
    """Return what the table says: duplicates, the class, borders, rivals, and test images beside training images."""
    sample = table.sample()
    of_borders = {
        name: bootstrap(spearman, sample["score"], sample[name].astype(float), resamples=resamples)
        for name in ("border_spread", "border_mean")
    }
    rivals = said(sample, resamples)
    relative = {name: table[name] / table["score"] for name in ("bound", "score_se", "score_se_curvature")}
    return {
        "scored": len(table["id"]),
        "images": len(sample["id"]),
        "judged": find_judged(table, pairs, resamples),
        "class": lowest_of_class(table),
        **counted(sample),
        **rivals,
        "spearman": {**rivals["spearman"], **of_borders},
        "test images above training images": {
            name: bootstrap(auroc, table[name].astype(float), ~table["sample"], resamples=resamples)
            for name in ("score", *RIVALS)
        },
        "width of the bounds over the score": {
            "median": float(np.median(relative["bound"])),
            "largest": float(np.max(relative["bound"])),
        },
        "median standard error over the score": {
            "draws": float(np.median(relative["score_se"])),
            "curvature set": float(np.median(relative["score_se_curvature"])),
        },
    }


def load(study: Study) -> Table:
    """Read what is kept of every image."""
    kept = pq.read_table(study.kept / "whole.parquet")
    columns = {name: kept[name].to_numpy(zero_copy_only=False) for name in kept.column_names}
    return Table(columns, {"chosen": {name: int(columns[name].sum()) for name in ("sample", "class", "pairs")}})


def find(study: Study, resamples: int = 200) -> tuple[dict[str, Any], None]:
    """Score every image, keep the scores, and ask."""
    table, units = scored(study)
    study.kept.mkdir(parents=True, exist_ok=True)
    out = study.kept / "whole.parquet"
    pq.write_table(pa.table(table.columns), out, compression="zstd", compression_level=19)
    size = min(SIZES[0], int(table["sample"].sum()) // 2)
    apart = measure(table.sample(), units[table["sample"]], size)
    told = {
        "minutes": table.record["minutes"],
        "rows": table.record["rows"],
        f"{size} of {int(table['sample'].sum())}": apart,
    }
    return {**told, **asked(table, study.pairs(), resamples)}, None


if __name__ == "__main__":
    results.main("whole", find)
