"""Score all 60,000 images of CIFAR-10 exactly, and by two approximations of the same matrix.

    python -m experiments.score_exactly --data-dir DATA                  (SimCLR; --encoder names another)

C is the sampled Fisher of 4,096 images, one draw each, so `Gram` inverts it exactly and bounds its rounding. LoGra of rank
16 and EK-FAC of rank 64 approximate the same C. Every backend takes its default damping. The command continues where it was
stopped. It is meant for a GPU: two cores take a day.

Written to `results/exact_<encoder>`: table.parquet, one row for each image, 32-bit numbers; result.json.

    columns     of `Gram` the score, its standard error over draws and over parts of the curvature set, and its bounds; the
                scores of the two others; alignment loss, squared norm of the gradient, distance to the nearest embedding
    result      Spearman's correlation of each with the exact score, and overlap of the highest and lowest 1 %; the share
                of scores whose bounds are closer than 1 %; minutes of each run, reading and writing included
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console

from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Digits, Parquet, Source, Tfds
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman, top_overlap
from influence_ssl_jax.ihvp import EKFAC, Backend, Gram, LoGra
from influence_ssl_jax.provenance import versions
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring

HERE = Path(__file__).parent
EXACT = "Gram"
OF_ALL = ("id", "label", "alignment_loss", "gradient_norm", "knn_distance")
OF_EXACT = ("score", "score_se", "score_se_curvature", "score_lo", "score_hi")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is scored.

    Attributes:
        encoder: The network: a folder of an imported encoder, or package.module:function, which returns one.
        data_dir: Where tensorflow-datasets keeps CIFAR-10.
        files: Folder of CIFAR-10 as parquet files, as `benchmarks.gpu` writes them, in place of `data_dir`.
        tiny_images: The bundled digits instead, so many of them.
        curvature: The matrix.
        scoring: Draws and batches.
        ranks: Of LoGra and of EK-FAC.
        runs: Folder of the runs.
        results: Folder of the results.
    """

    encoder: Path = HERE / "encoders" / "simclr_torch_w16_cifar10"
    data_dir: str | None = None
    files: Path | None = None
    tiny_images: int | None = None
    curvature: CurvatureSet = dataclasses.field(default_factory=lambda: CurvatureSet(kind="fisher", examples=4096))
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=2))
    ranks: tuple[int, int] = (16, 64)
    runs: Path = Path("runs/exact")
    results: Path = HERE / "results"

    @classmethod
    def tiny(cls, folder: Path, encoder: Path) -> "Config":
        """Return settings that run every step on a few small digits."""
        curvature, scoring = CurvatureSet(kind="fisher", examples=8, batch_size=8), Scoring(draws=2, batch_size=8)
        return cls(
            encoder, None, None, 16, curvature, scoring, ranks=(2, 2), runs=folder / "runs", results=folder / "results"
        )

    def source(self) -> Source:
        """Return the images."""
        if self.tiny_images is not None:
            return Digits(8, digits=self.tiny_images)
        if self.files is not None:
            return Parquet(str(self.files), id="id")
        return Tfds("cifar10", "test+train", self.data_dir)

    def backends(self) -> dict[str, Backend]:
        """Return the backends by name, the exact one first."""
        return {EXACT: Gram(), "LoGra": LoGra(self.ranks[0]), "EKFAC": EKFAC(self.ranks[1])}


def run(config: Config) -> Path:
    """Score by every backend, compare, and write; returns the folder of the result."""
    tables, minutes = {}, {}
    for name, backend in config.backends().items():
        out, began = config.runs / config.encoder.name / name, time.monotonic()
        settings = ScoreRun(
            config.encoder, out, config.source(), curvature=config.curvature, backend=backend, scoring=config.scoring
        )
        score(settings, Renderer(Console()))
        minutes[name] = (time.monotonic() - began) / 60
        tables[name] = pq.read_table(out / "scores.parquet").sort_by("index")
    folder = config.results / f"exact_{config.encoder.name}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: narrow(tables[EXACT][name]) for name in (*OF_ALL, *OF_EXACT)}
    columns |= {f"score_{name.lower()}": narrow(table["score"]) for name, table in tables.items() if name != EXACT}
    pq.write_table(pa.table(columns), folder / "table.parquet", compression="zstd", compression_level=19)
    record = {
        "command": f"python -m experiments.score_exactly --encoder {config.encoder.name} --data-dir DIR",
        "images": len(tables[EXACT]),
        "settings": {name: describe(getattr(config, name)) for name in ("curvature", "scoring", "ranks")},
        "found": compare({name: np.asarray(column) for name, column in columns.items() if name not in ("id", "label")}),
        "runs": {name: summary(config.runs / config.encoder.name / name, minutes[name]) for name in tables},
        "versions": versions(),
    }
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder


def narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in 32 bits, if it has numbers with fractions."""
    return column.cast(pa.float32()) if pa.types.is_floating(column.type) else column


def summary(folder: Path, minutes: float) -> dict[str, Any]:
    """Return what a run says of itself: damping, seconds, device; and the minutes of the whole call."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = {name: record[name] for name in ("damping", "seconds", "device", "environment") if name in record}
    return {**kept, "minutes": round(minutes, 2)}


def compare(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare every column with the exact score: rank correlation and overlap of both ends; the width of the bounds."""
    exact = columns["score"].astype(np.float64)
    count, comparisons = max(1, len(exact) // 100), {}
    for name, values in columns.items():
        if name in OF_EXACT:
            continue
        estimate = bootstrap(spearman, values.astype(np.float64), exact, resamples=200)
        comparisons[name] = {
            "spearman": [round(float(each), 5) for each in estimate],
            "overlap of the highest 1 %": round(top_overlap(values, exact, count), 4),
            "overlap of the lowest 1 %": round(top_overlap(-values, -exact, count), 4),
        }
    width = (columns["score_hi"] - columns["score_lo"]) / exact
    return {
        "compared with the exact score": comparisons,
        "bounds closer than 1 %": float(np.mean(width < 0.01)),
        "width of the bounds, median": float(np.median(width)),
        "relative standard error over draws, median": float(np.median(columns["score_se"] / exact)),
        "relative standard error over the curvature set, median": float(
            np.median(columns["score_se_curvature"] / exact)
        ),
    }


if __name__ == "__main__":
    keep_convolutions_whole()
    run(tyro.cli(Config))
