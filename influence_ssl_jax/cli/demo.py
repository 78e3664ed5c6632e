"""Pretrain, score and report on bundled images.

Also print how well planted images are found.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from influence_ssl_jax.cli.commands import pretrain, report, score
from influence_ssl_jax.configuration import COUNT, check_numbers
from influence_ssl_jax.data import Digits, ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.report.analysis import Recovery, explained_by_baselines, recoveries
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.report.words import decimal, percent
from influence_ssl_jax.runs.settings import CurvatureSet, PretrainRun, ReportRun, ScoreRun
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.train import Architecture, Lars, Pretrain, Probe


def summarise(folder: Path, out: Console) -> None:
    """Print how well the score and each baseline find planted images.

    Raises:
        StoreError: If the folder does not contain a finished run.
    """
    run = ScoredRun.load(folder)
    recovered = recoveries(run)
    if recovered:
        aurocs = [[detector.auroc for detector in item.detectors] for item in recovered]
        precisions = [[detector.average_precision for detector in item.detectors] for item in recovered]
        out.print(table("AUROC", recovered, aurocs, [0.5] * len(recovered)))
        out.print(table("Average precision", recovered, precisions, [item.chance for item in recovered]))
        out.print("low, high: where planted images are looked for; *: this end was expected beforehand.", style="dim")
    counts, own = run.record["counts"], explained_by_baselines(run)
    out.print(
        f"{counts['scored']} images scored, {counts['nan']} scores not finite, {counts['skipped']} images skipped. "
        f"Together the baselines explain {percent(own)} of the variance of the scores' ranks.",
        highlight=False,
    )


def table(
    title: str, recovered: Sequence[Recovery], values: Sequence[Sequence[float]], chance: Sequence[float]
) -> Table:
    """Make a table with kinds and ends as rows.

    The columns are the score and the baselines.
    """
    shown = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        show_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
    )
    shown.add_column("planted", no_wrap=True)
    for name in (*(detector.name for detector in recovered[0].detectors), "at random"):
        shown.add_column(name.replace(" ", "\n"), justify="right")
    for item, row, random in zip(recovered, values, chance, strict=True):
        end = f"{'low' if item.low else 'high'}{'*' if item.expected else ''}"
        name = f"{item.planted} {item.kind.replace('_', ' ')}, {end}"
        shown.add_row(name, *(decimal(value) for value in row), decimal(random))
    return shown


@dataclasses.dataclass(frozen=True)
class Demo:
    """Pretrain, score and report on bundled images in minutes.

    Neither a download nor an accelerator is needed. The images are handwritten digits with planted exact and near
    duplicates, blank images and noise. The demo measures how well the scores and simpler measures find these. Finished
    work is kept: repeat the command to continue.

    influence-ssl demo --out demo

    Attributes:
        out: Folder for encoder/, scores/ and report.html.
        epochs: Passes over the images in pretraining.
        draws: Perturbations per image.
        seed: Seed of all random numbers; the bundled images are always the same.
    """

    out: Path = Path("demo")
    epochs: int = 30
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a demo without training or draws."""
        check_numbers(self, epochs=COUNT, draws=COUNT, seed=(0, math.inf))


def demo(settings: Demo, out: Console) -> None:
    """Pretrain, score and report, and print how well planted images are found."""
    source = Digits()
    training = Pretrain(
        "simclr",
        SimCLR(0.2),
        Architecture(width=8, hidden=128, output=64, normalisation="none"),
        Lars(0.4, warmup_epochs=min(3, settings.epochs - 1)),
        epochs=settings.epochs,
        batch_size=128,
        seed=settings.seed,
    )
    encoder, scores = settings.out / "encoder", settings.out / "scores"
    out.rule("1  Pretrain without labels", align="left")
    pretrain(PretrainRun(encoder, source, training, ToInput(source.size, source.size), probe=Probe(every=0)), out)
    out.rule("2  Score every image", align="left")
    scoring = Scoring(draws=settings.draws, seed=settings.seed)
    score(ScoreRun(encoder, scores, source, curvature=CurvatureSet(examples=512), scoring=scoring), out)
    out.rule("3  Report", align="left")
    report(ReportRun(scores, out=settings.out / "report.html"), out)
    summarise(scores, out)
