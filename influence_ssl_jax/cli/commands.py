"""Run the commands and print their progress and results.

There is one function for each command. Each function imports its run when it is called, so that a command does not load
the others.
"""

from rich.console import Console
from rich.text import Text

from influence_ssl_jax.cli.console import Renderer, print_accuracies, print_audit, print_comparison
from influence_ssl_jax.progress import Written
from influence_ssl_jax.runs.import_encoder import ImportRun
from influence_ssl_jax.runs.probe import ProbeRun
from influence_ssl_jax.runs.settings import AuditRun, CompareRun, PretrainRun, ReportRun, ScoreRun


def pretrain(settings: PretrainRun, out: Console) -> None:
    """Train an encoder."""
    from influence_ssl_jax.runs.pretrain import pretrain

    pretrain(settings, Renderer(out))


def probe(settings: ProbeRun, out: Console) -> None:
    """Measure an encoder's accuracies on test images, and print them."""
    from influence_ssl_jax.runs.probe import probe

    print_accuracies(probe(settings, Renderer(out)), out)


def import_encoder(settings: ImportRun, out: Console) -> None:
    """Import an encoder, and print what is in its file of weights."""
    from influence_ssl_jax.runs.import_encoder import import_encoder

    made = import_encoder(settings)
    for name, value in made.recognised.items():
        out.print(Text(f"{name}: {value}"), soft_wrap=True)
    out.print(Text(f"parameters: {made.parameters:,}"), soft_wrap=True)
    for name, reason in made.unread.items():
        out.print(Text(f"not read: {name}: {reason}"), soft_wrap=True)
    Renderer(out)(Written("Encoder", made.arrays))


def score(settings: ScoreRun, out: Console) -> None:
    """Score a data set into a folder."""
    from influence_ssl_jax.runs.score import score

    score(settings, Renderer(out))


def audit(settings: AuditRun, out: Console) -> None:
    """Audit a folder of scores, and print how exact they are."""
    from influence_ssl_jax.runs.audit import audit

    print_audit(audit(settings, Renderer(out)), out)


def compare(settings: CompareRun, out: Console) -> None:
    """Compare backends with exact scores, and print the tables."""
    from influence_ssl_jax.runs.compare import COMPARISON, compare

    render = Renderer(out)
    print_comparison(compare(settings, render)["rows"], out)
    render(Written("Comparison", settings.out / COMPARISON))


def report(settings: ReportRun, out: Console) -> None:
    """Write the report of a folder of scores."""
    from influence_ssl_jax.report.render import render

    page = render(settings.folder, settings.out, extent=settings.extent)
    Renderer(out)(Written("Report", page))
