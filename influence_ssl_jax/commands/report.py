"""`influence-ssl report`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from influence_ssl_jax.report.extent import Extent


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the report of a scored data set: one HTML page that needs nothing but itself.

    influence-ssl report runs/cifar10

    influence-ssl report runs/cifar10 --images 60 --tail 0.01 --out cifar10.html

    Attributes:
        folder: A finished folder of scores: it holds scores.parquet and run.json. Pictures are read again from the data
            set that it names.
        extent: How much is shown.
        out: The page to write; report.html in the folder where it is not given.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    extent: Annotated[Extent, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Extent)
    out: Path | None = None

    def run(self, out: Console) -> None:
        """Render, and say where."""
        from influence_ssl_jax.report.render import render  # matplotlib and scikit-learn: slow to import

        page = render(self.folder, self.out, extent=self.extent)
        out.print(f"Report: {page}", highlight=False, markup=False, soft_wrap=True)
