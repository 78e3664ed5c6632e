"""What a run with planted truth found, in two small tables."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from influence_ssl_jax.report.comparison import explained_by_baselines
from influence_ssl_jax.report.recovery import Recovery, recoveries
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.report.words import decimal, percent


def summarise(folder: Path, out: Console) -> None:
    """Print how well the score and each baseline recover what was planted, and how much of the score is its own.

    Raises:
        StoreError: The folder holds no finished run.
    """
    run = ScoredRun.load(folder)
    found = recoveries(run)
    if found:
        aurocs = [[detector.auroc for detector in item.detectors] for item in found]
        precisions = [[detector.average_precision for detector in item.detectors] for item in found]
        out.print(table("AUROC", found, aurocs, [0.5] * len(found)))
        out.print(table("Average precision", found, precisions, [item.chance for item in found]))
        out.print("low, high: the end of the list that is taken for suspicious; * expected beforehand.", style="dim")
    counts, own = run.record["counts"], explained_by_baselines(run)
    out.print(
        f"{counts['scored']} images scored, {counts['nan']} not finite, {counts['skipped']} skipped. Together the "
        f"baselines explain {percent(own)} of the variance of the scores' ranks.",
        highlight=False,
    )


def table(title: str, found: Sequence[Recovery], values: Sequence[Sequence[float]], chance: Sequence[float]) -> Table:
    """One row for each kind and end, one column for the score and each baseline."""
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
    for name in (*(detector.name for detector in found[0].detectors), "at random"):
        shown.add_column(name.replace(" ", "\n"), justify="right")
    for item, row, random in zip(found, values, chance, strict=True):
        end = f"{'low' if item.low else 'high'}{'*' if item.expected else ''}"
        name = f"{item.planted} {item.kind.replace('_', ' ')}, {end}"
        shown.add_row(name, *(decimal(value) for value in row), decimal(random))
    return shown
