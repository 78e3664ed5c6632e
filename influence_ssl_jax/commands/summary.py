"""What a run with planted truth found, in one table."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from influence_ssl_jax.report.comparison import explained_by_baselines
from influence_ssl_jax.report.recovery import recoveries
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.report.words import decimal, percent


def summarise(folder: Path, out: Console) -> None:
    """Print how well the score and each baseline recover what was planted, and how much of the score is its own.

    Raises:
        StoreError: The folder holds no finished run.
    """
    run = ScoredRun.load(folder)
    found = recoveries(run)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="AUROC / average precision", title_justify="left")
    table.add_column("planted")
    table.add_column("suspicious end")
    for detector in found[0].detectors if found else ():
        table.add_column(detector.name, justify="right")
    table.add_column("at random", justify="right")
    for item in found:
        end = f"{'low' if item.low else 'high'}{' (expected)' if item.expected else ''}"
        values = [f"{decimal(d.auroc)} / {decimal(d.average_precision)}" for d in item.detectors]
        table.add_row(f"{item.planted} {item.kind.replace('_', ' ')}", end, *values, f"0.500 / {decimal(item.chance)}")
    if found:
        out.print(table)
    counts = run.record["counts"]
    out.print(
        f"{counts['scored']} images scored, {counts['nan']} not finite, {counts['skipped']} skipped. The baselines explain "
        f"{percent(explained_by_baselines(run))} of the variance of the scores' ranks.",
        highlight=False,
    )
