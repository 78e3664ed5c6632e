"""Write the report of a folder of scores."""

from pathlib import Path

from influence_ssl_jax.data import Source
from influence_ssl_jax.progress import Progress, Written, silent
from influence_ssl_jax.report.render import render
from influence_ssl_jax.runs.settings import ReportRun


def report(settings: ReportRun, progress: Progress = silent, source: Source | None = None) -> Path:
    """Render the page.

    Args:
        settings: Of which folder, and where to.
        progress: Who is told.
        source: The images, where the scores were made of an object.

    Returns:
        Where the page is.

    Raises:
        StoreError: The folder holds no finished scores.
    """
    page = render(settings.folder, settings.out, extent=settings.extent, source=source)
    progress(Written("Report", page))
    return page
