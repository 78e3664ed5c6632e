"""Which of 10,000 CIFAR-10 images does Influence-SSL rank first and last, and do simpler measures rank alike?

The encoders of `pretrain_cifar10.py`, scored on the images they were trained on: cosine distance of the representations of
an image and of itself under noise of σ = 0.2, LoGra of rank 16 over the Gauss–Newton matrix of 1,024 images, two draws.

    python experiments/score_cifar10.py --method byol --data-dir DIR    # also simclr, barlow_twins

Time: about 5 minutes each on two free cores. It writes the table and how it was made into `results`, and, beside the run,
pictures of the 60 highest, the 60 lowest, and the 60 lowest of one class; `id` holds the official number of an image. In
the copy of CIFAR-10 that these runs read, 72 training images (ships, a few horses) are lossy stand-ins.

Found, each encoder after three or five epochs (two draws: median relative standard error of a score below one half):

    Spearman with       alignment loss   gradient norm   pixel variance   kNN distance   all together, R² of ranks
    SimCLR                   0.962           0.983           -0.552           0.205               0.969
    Barlow Twins             0.979           0.910           -0.438           0.270               0.961
    BYOL                     0.995           0.974            0.187           0.867               0.993

Seen. SimCLR and Barlow Twins: the highest are flat, grey or green pictures of birds, deer and frogs whose subject hardly
stands out; the lowest are contrasty, a subject on a white, black or saturated ground; the lowest automobiles are clean
views on uniform ground, several alike, but picked out by their contrast as is all else at that end. BYOL: the highest are
small grey subjects on sky, water or snow, the lowest brown, orange and green animals; its lowest automobiles are red,
orange and yellow ones.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.data import Digits, Source, Tfds
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.runs.score import score
from influence_ssl_jax.runs.settings import CurvatureSet, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.store import BASELINES

HERE = Path(__file__).parent
KEPT = ("command", "counts", "damping", "seeds", "versions", "device")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is scored.

    Attributes:
        method: Which encoder.
        images: Which data: CIFAR-10, or the bundled digits, which need no download.
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        split: The images.
        label: The class whose lowest images are shown; 1 is 'automobile'.
        encoder: The network; that of `method` where None.
        scoring: Draws and batches.
        curvature: The matrix that is inverted.
        runs: Folder of the runs.
        results: Folder of the tables.
    """

    method: Literal["simclr", "byol", "barlow_twins"] = "simclr"
    images: Literal["cifar10", "digits"] = "cifar10"
    data_dir: str | None = None
    split: str = "train[:10000]"
    label: int = 1
    encoder: Path | None = None
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=2))
    curvature: CurvatureSet = dataclasses.field(default_factory=lambda: CurvatureSet(examples=1024, batch_size=128))
    runs: Path = Path("runs/score_cifar10")
    results: Path = HERE / "results"

    @classmethod
    def tiny(cls, folder: Path, encoder: Path) -> "Config":
        """Return settings that run every step on a few small digits."""
        chosen = CurvatureSet(examples=8, batch_size=8)
        scoring = Scoring(draws=2, batch_size=8)
        return cls(
            images="digits",
            encoder=encoder,
            scoring=scoring,
            curvature=chosen,
            runs=folder / "runs",
            results=folder / "results",
        )

    def source(self) -> Source:
        """Return the images."""
        return Digits(8, digits=16) if self.images == "digits" else Tfds("cifar10", self.split, self.data_dir)


def run(config: Config) -> Path:
    """Score, and keep a small table with how it was made; returns the folder of the run."""
    encoder = config.encoder or HERE / "encoders" / f"{config.method}_w16_cifar10.npz"
    folder = config.runs / config.method
    score(
        ScoreRun(encoder, folder, config.source(), curvature=config.curvature, scoring=config.scoring),
        Renderer(Console()),
    )
    config.results.mkdir(parents=True, exist_ok=True)
    condense(ScoredRun.load(folder), config.results / f"scores_{encoder.stem}", f"--method {config.method}")
    return folder


def condense(run: ScoredRun, out: Path, arguments: str) -> None:
    """Write the table in 32 bits, and a record without local paths."""
    table = run.table
    for place, field in enumerate(table.schema):
        if pa.types.is_float64(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(pa.float32()))
    pq.write_table(table, out.with_suffix(".parquet"), compression="zstd", compression_level=19)
    record = {name: run.record[name] for name in KEPT if name in run.record}
    record["command"] = f"python experiments/{Path(__file__).name} {arguments}"
    record["spearman with the score"] = correlations(table)
    relative = run.numbers("score_se") / run.score
    record["median relative standard error"] = round(float(np.nanmedian(relative)), 3)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def correlations(table: pa.Table) -> dict[str, float]:
    """Rank correlation of the score with each baseline."""
    return {name: round(spearman(table["score"].to_numpy(), table[name].to_numpy()), 3) for name in BASELINES}


def plot(run: ScoredRun, source: Source, label: int, shown: int = 60) -> dict[str, Figure]:
    """Draw the highest, the lowest, and the lowest of one class."""
    opened, ranked = source.open(), run.ranking()
    labels = run.numbers("label")
    chosen = {
        "highest": ranked,
        "lowest": ranked[::-1],
        f"lowest of class {label}": ranked[labels[ranked] == label][::-1],
    }
    figures = {}
    for name, rows in chosen.items():
        figures[name] = figure = Figure(figsize=(12, 6.4), layout="constrained")
        figure.suptitle(f"{run.folder.name}: {name}")
        for axes, row in zip(figure.subplots(5, 12).flat, rows[:shown], strict=False):
            axes.imshow(opened.read(int(run.table["index"][int(row)].as_py())).image, cmap="gray")
            axes.set_title(f"{run.score[row]:.2g}", fontsize=7)
        for axes in figure.axes:
            axes.set_axis_off()
    return figures


def main() -> None:
    """Score, and draw."""
    config = tyro.cli(Config)
    folder = run(config)
    for name, figure in plot(ScoredRun.load(folder), config.source(), config.label).items():
        figure.savefig(folder / f"{name.replace(' ', '_')}.png", dpi=110)


if __name__ == "__main__":
    main()
