"""Write the report of a folder of scores."""

from rich.console import Console

from influence_ssl_jax.report.render import render
from influence_ssl_jax.runs.settings import ReportRun


def report(settings: ReportRun, out: Console) -> None:
    """Render the page, and say where it is.

    Raises:
        StoreError: The folder holds no finished scores.
    """
    page = render(settings.folder, settings.out, extent=settings.extent)
    out.print(f"Report: {page}", highlight=False, markup=False, soft_wrap=True)
