"""`influence-ssl audit`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.certificate import Audit


@dataclasses.dataclass(frozen=True)
class AuditCommand:
    """Certify a random sample of a scored data set, and calibrate every score by it.

    Of each sampled image the exact score g·(C + λI)⁻¹g is enclosed between two bounds that hold at any size of network
    (Gauss and Gauss–Radau quadrature by Lanczos, rounding allowed for). The sample says how far the scores are from
    exact ones, beside the trivial baselines, and turns each into a calibrated score with an interval that holds the
    exact one with a known probability (split conformal prediction).

    The folder then also holds audit.parquet (the bounds, and a reason where there are none or too wide ones),
    calibrated.parquet (score, score_lo and score_hi of every image; galerkin_lo and galerkin_hi too, which always hold,
    where the scores came from `backend:arnoldi`) and audit.json (how good the scores are). scores.parquet is not
    touched. Certificates are kept as they are made: the same command given again goes on where it stopped, and a larger
    --examples adds to the sample.

    influence-ssl audit runs/simclr/scores

    influence-ssl audit runs/simclr/scores --examples 50 --width 0.02 --calibration.level 0.95

    What it costs: up to --steps products with C for each image and draw, a product being some two gradients of the whole
    curvature set. Certificates get narrow in fewer steps with more damping; with little (λ below about 1e-5 of the
    largest eigenvalue) float32 leaves no bound, and audit.parquet says so: take --precision float64 then.

    Attributes:
        folder: A finished folder of scores.
        audit: How many images, and how narrow.
        precision: In which the certificates are computed; the noise is that of the scores in either.
        calibration: How scores are brought to the certified scale, and the coverage of their intervals.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    audit: Annotated[Audit, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Audit)
    precision: Literal["float32", "float64"] = "float32"
    calibration: Calibration = dataclasses.field(default_factory=Calibration)

    def run(self, out: Console) -> None:
        """Certify, calibrate, write, and say what was found."""
        from influence_ssl_jax.commands.audit_run import run  # loads the networks: seconds

        run(self, out)
