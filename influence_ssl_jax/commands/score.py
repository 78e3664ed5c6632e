"""`influence-ssl score`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.commands.scoring_settings import (
    AnyBackend,
    AnyMeasurement,
    AnyPerturbation,
    CurvatureSet,
    Output,
    Parts,
)
from influence_ssl_jax.data import AnySource, Digits
from influence_ssl_jax.ihvp import LoGra
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.parallel import Distributed
from influence_ssl_jax.train.settings import Precision


@dataclasses.dataclass(frozen=True)
class Score:
    """Score every image of a data set by its influence on the representation: g·(C + λI)⁻¹g.

    Scores are kept as they are made: the same command given again goes on where it stopped. The folder then holds
    scores.parquet (one row an image, the baselines beside each score) and run.json (how it was made).

    influence-ssl score --encoder runs/simclr --out runs/simclr/scores source:tfds --source.name cifar10

    influence-ssl score --encoder runs/simclr --out scores --draws 8 backend:logra --backend.rank 32

    Attributes:
        encoder: The folder of a `pretrain` run, or its encoder.npz.
        out: The folder of the scores; an existing one is gone on with if it was made by the same settings.
        source: The images.
        output: Which embedding is compared: the encoder's representation or the projector's output.
        perturbation: What an image is compared with: itself under noise, or under a named augmentation.
        measurement: How two embeddings are compared, and through which of them the gradient goes.
        curvature: Which matrix is inverted.
        backend: How it is inverted.
        scoring: Damping, draws and what they are averaged into.
        precision: What layers compute in; gradients, curvature and scores are added up in float32 either way. With bfloat16
            the rank correlation with float32, over some hundred images, is measured and said.
        parts: How often finished scores are written.
        distributed: For a run of several processes, where no scheduler says who they are.
    """

    encoder: Path
    out: Path
    source: AnySource = dataclasses.field(default_factory=Digits)
    output: Output = "encoder"
    perturbation: AnyPerturbation = dataclasses.field(default_factory=GaussianNoise)
    measurement: AnyMeasurement = dataclasses.field(default_factory=CosineDistance)
    curvature: CurvatureSet = dataclasses.field(default_factory=CurvatureSet)
    backend: AnyBackend = dataclasses.field(default_factory=LoGra)
    scoring: Annotated[Scoring, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Scoring)
    precision: Precision = "float32"
    parts: Parts = dataclasses.field(default_factory=Parts)
    distributed: Distributed = dataclasses.field(default_factory=Distributed)

    def run(self, out: Console) -> None:
        """Score what has no score yet."""
        from influence_ssl_jax.commands.score_run import score  # loads the networks: seconds

        score(self, out)
