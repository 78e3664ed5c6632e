"""What do exact scores say? Those of every image of the table, each with a bound, beside the approximated ones.

    python -m experiments.study.exactly --data-dir DIR --truth DIR           (after experiments.study.table; resumable)

The images of the table are scored once more, with the same noise, by `Gram`: the exact inverse of the sampled Fisher
information over `--exact-rows` images (512) of the curvature set, a row each. Every score has a bound of its rounding, a
standard error over the draws and one over parts of the curvature set. Compared are the two rankings of the random sample;
and the questions of `beyond_loss` and of `duplicates` are asked of the exact scores.

Written beside the result: exact.parquet, the scores with their bounds and errors, 32-bit numbers, a row for each image.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from experiments.study import results
from experiments.study.beyond_loss import said
from experiments.study.duplicates import find_judged, lowest_of_class
from experiments.study.table import Study, Table
from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Source
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman, top_overlap
from influence_ssl_jax.ihvp import Gram
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import ScoreRun

KEPT = ("score", "score_se", "score_se_curvature", "score_lo", "score_hi")
END = 0.05
"""Share of the images at either end whose overlap is counted."""


def settings_of(study: Study, source: Source, out: Path) -> ScoreRun:
    """Return the settings of an exact run: those of the table but for backend and curvature."""
    rows = min(study.exact_rows, study.curvature.examples)
    curvature = dataclasses.replace(study.curvature, kind="fisher", examples=rows)
    return ScoreRun(study.encoder, out, source, curvature=curvature, backend=Gram(), scoring=study.scoring)


def scored(study: Study, table: Table) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Score exactly; returns the columns in the table's order, and what the run says of itself."""
    settings = settings_of(study, study.source_of_scored(), study.run / "exactly")
    score(settings, Renderer(Console()))
    rows = pq.read_table(settings.out / "scores.parquet")
    place = {name: row for row, name in enumerate(rows["id"].to_pylist())}
    order = np.array([place[name] for name in table["id"]])
    record = json.loads((settings.out / "run.json").read_text(encoding="utf-8"))
    return {name: rows[name].to_numpy()[order] for name in KEPT}, record


def compared(table: Table, exact: Table, resamples: int) -> dict[str, Any]:
    """Compare exact scores with those of the table, and ask of them what is asked of those."""
    value, approximated, count = exact["score"], table["score"], max(1, round(END * len(exact["score"])))
    relative = {name: exact[name] / value for name in KEPT[1:]}
    return {
        "images": len(value),
        "with the approximated score": {
            "spearman": bootstrap(spearman, approximated, value, resamples=resamples),
            "overlap of the highest twentieth": top_overlap(value, approximated, count),
            "overlap of the lowest twentieth": top_overlap(-value, -approximated, count),
        },
        "width of the bounds over the score": {
            "median": float(np.median(relative["score_hi"] - relative["score_lo"])),
            "largest": float(np.max(relative["score_hi"] - relative["score_lo"])),
        },
        "median standard error over the score": {
            "draws": float(np.median(relative["score_se"])),
            "curvature set": float(np.median(relative["score_se_curvature"])),
        },
        **said(exact, resamples),
    }


def load(folder: Path) -> Table:
    """Read a table, with the exact scores in place of the approximated ones."""
    table, exact = Table.load(folder), pq.read_table(folder / "exact.parquet")
    return table.replace({name: exact[name].to_numpy() for name in exact.column_names if name != "id"})


def find(study: Study, resamples: int = 200) -> tuple[dict[str, Any], None]:
    """Score exactly, keep the scores, and compare."""
    table = Table.load(study.kept)
    columns, run = scored(study, table)
    narrow = {"id": table["id"], **{name: values.astype(np.float32) for name, values in columns.items()}}
    pq.write_table(pa.table(narrow), study.kept / "exact.parquet", compression="zstd", compression_level=19)
    exact = table.replace(columns)
    judged = find_judged(exact, study.pairs(), resamples)
    told = {
        "rows": run["configuration"]["curvature"]["examples"],
        "scored": len(table["id"]),
        "damping": run["damping"],
        "by parts of the curvature set": run["curvature_set"],
        "duplicates": {judgement: each["score"] for judgement, each in judged.items()},
        "class": lowest_of_class(exact)["score"],
    }
    return {**told, **compared(table.sample(), exact.sample(), resamples)}, None


if __name__ == "__main__":
    results.main("exactly", find)
