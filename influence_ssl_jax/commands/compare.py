"""`influence-ssl compare`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.commands.scoring_settings import AnyMeasurement, AnyPerturbation, CurvatureSet, Output
from influence_ssl_jax.data import AnySource, Digits
from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.certificate import Audit
from influence_ssl_jax.influence.contenders import Knobs
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.losses import CosineDistance


@dataclasses.dataclass(frozen=True)
class CompareCommand:
    """Which inverse is good enough, and what does it cost: every backend against exact scores of one sample of images.

    All backends approximate the same (C + λI)⁻¹, over their main knob and over the damping. The folder then holds
    comparison.json, pareto.png (error against time), damping.png (error against λ), and a table is printed. A backend
    that cannot do it (it diverges, or needs layers that are not there) is a row with the reason. The same command given
    again goes on with the backends that are missing.

    influence-ssl compare --encoder runs/simclr --out runs/simclr/compare source:tfds --source.name cifar10

    influence-ssl compare --encoder runs/simclr --out compare --examples 50 --dampings 0.1 1 --knobs.ranks 32
    --knobs.iterations --knobs.depths

    Exact scores come from the dense matrix of up to 3,000 parameters; at any size from the outer products of a Fisher
    (--curvature.kind fisher --curvature.examples 64 --curvature.samples 16: at most 4,096 products of examples and
    samples); and otherwise from Lanczos quadrature, some 20 to 100 products with C for each image and draw.

    Attributes:
        encoder: The folder of a `pretrain` run, or its encoder.npz.
        out: The folder of the comparison.
        source: The images.
        output: Which embedding is compared: the encoder's representation or the projector's output.
        perturbation: What an image is compared with: itself under noise, or under a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        knobs: How the backends are varied.
        dampings: λ over the mean eigenvalue of C; one number for the whole matrix in every backend.
        truth: Where exact scores come from.
        scoring: Draws and what they are averaged into; `damping` is not read.
        audit: How many images, and how narrow where their scores are certified.
        calibration: How scores are brought to the exact scale.
    """

    encoder: Path
    out: Path
    source: AnySource = dataclasses.field(default_factory=Digits)
    output: Output = "encoder"
    perturbation: AnyPerturbation = dataclasses.field(default_factory=GaussianNoise)
    measurement: AnyMeasurement = dataclasses.field(default_factory=CosineDistance)
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    knobs: Knobs = dataclasses.field(default_factory=Knobs)
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0)
    truth: Literal["auto", "dense", "function_space", "certified"] = "auto"
    scoring: Scoring = dataclasses.field(default_factory=lambda: Scoring(draws=1, batch_size=20))
    audit: Annotated[Audit, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Audit)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)

    def run(self, out: Console) -> None:
        """Compare, write, and say what was found."""
        from influence_ssl_jax.commands.compare_run import run  # loads the networks: seconds

        run(self, out)
