"""`influence-ssl audit`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from influence_ssl_jax.influence.audit import Audit
from influence_ssl_jax.influence.calibration import Calibration


@dataclasses.dataclass(frozen=True)
class AuditCommand:
    """Certify a random sample of a scored data set, and calibrate every score by it.

    Of each sampled image the exact score is enclosed between two bounds that hold at any size of network (Lanczos
    quadrature). The sample says how far the scores are from exact ones, and turns each into a calibrated score with an
    interval. The folder then also holds audit.parquet (the bounds), calibrated.parquet (score, score_lo and score_hi of
    every image) and audit.json (how good the scores are).

    influence-ssl audit runs/simclr/scores

    influence-ssl audit runs/simclr/scores --examples 50 --width 0.02 --calibration.level 0.95

    Attributes:
        folder: A finished folder of scores.
        audit: How many images, and how narrow.
        calibration: How scores are brought to the certified scale, and the coverage of their intervals.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    audit: Annotated[Audit, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Audit)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)

    def run(self, out: Console) -> None:
        """Certify, calibrate, write, and say what was found."""
        from influence_ssl_jax.commands.audit_run import run  # loads the networks: seconds

        run(self, out)
