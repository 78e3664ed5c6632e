"""Check every statement of the theory; write table, JSON and page."""

import dataclasses
import json as jsons
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.theory.families import Verdict, as_json, run_checks, select_items
from influence_ssl_jax.theory.page import markdown, page

_STYLES = {"true": "green", "true under conditions": "yellow", "false as stated": "red"}


@dataclasses.dataclass(frozen=True)
class Theory:
    """Check every theorem behind the score against automatic differentiation.

    Each statement of the theory has a verdict (true, true under conditions, false as stated) and checks. A check compares
    random instances in float64 with dense linear algebra, automatic differentiation or actual refitting; for a false
    statement it verifies a counter-example. The command ends with an error if a check fails.

    influence-ssl theory --html theory.html

    Attributes:
        item: Names of the items to check; all if there are none.
        draws: Number of random instances for each check.
        seed: Seed of the instances.
        json: File for the results as JSON.
        html: File for a page with the typeset statements and a plot for each family; it needs no other file.
        markdown: File for the list of statements and verdicts, without measured numbers.
    """

    item: tuple[str, ...] = ()
    draws: int = 200
    seed: int = 0
    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InfluenceError(f"A check needs at least one draw, got --draws {self.draws}.")


def theory(settings: Theory, out: Console) -> None:
    """Run the checks, print the table, and write the files.

    Raises:
        InfluenceError: If a check fails; the table and all files are complete then.
    """
    if settings.markdown is not None:
        settings.markdown.write_text(markdown())
    items, start = select_items(settings.item), time.perf_counter()
    verdicts = []
    for verdict in run_checks(items, settings.draws, settings.seed):
        verdicts.append(verdict)
        if out.is_terminal:
            out.print(Text(f"{len(verdicts)}/{len(items)} {verdict.item.name}", style="dim"), end="\r")
    out.print(table(verdicts))
    checks = sum(len(verdict.outcomes) for verdict in verdicts)
    seconds = time.perf_counter() - start
    out.print(
        f"{len(verdicts)} items, {checks} checks, {settings.draws} draws each, seed {settings.seed}: {seconds:.0f} s"
    )
    if settings.json is not None:
        written = {"draws": settings.draws, "seed": settings.seed, "items": [as_json(verdict) for verdict in verdicts]}
        settings.json.write_text(jsons.dumps(written, indent=1, ensure_ascii=False) + "\n")
    if settings.html is not None:
        settings.html.write_text(page(verdicts, settings.draws, settings.seed))
    failed = [f"{v.item.name} ({o.name})" for v in verdicts for o in v.outcomes if not o.passed]
    if failed:
        raise InfluenceError(f"{len(failed)} of {checks} checks failed: {'; '.join(failed)}.")


def table(verdicts: Sequence[Verdict]) -> Table:
    """Make a table of verdicts and their checks.

    For each check it has the measured number, limit and draws.
    """
    written = Table(title="The theory of Influence-SSL", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    written.add_column("item, verdict, checks", overflow="fold")
    written.add_column("measured", justify="right", no_wrap=True)
    written.add_column("allowed", no_wrap=True)
    written.add_column("draws", justify="right", no_wrap=True)
    written.add_column("")
    for verdict in verdicts:
        item = verdict.item
        written.add_row(Text.assemble((item.name, "bold"), "  ", (item.status, _STYLES[item.status])))
        for outcome in verdict.outcomes:
            written.add_row(
                Padding(Text(outcome.name), (0, 0, 0, 2)),
                f"{outcome.statistic:.3g}",
                f"{outcome.limit.symbol} {outcome.limit.value:.3g} {outcome.limit.statistic}",
                str(outcome.draws),
                Text("pass", style="green") if outcome.passed else Text("FAIL", style="bold red"),
            )
    return written
