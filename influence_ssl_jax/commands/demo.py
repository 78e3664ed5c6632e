"""`influence-ssl demo`."""

import dataclasses
from pathlib import Path

from rich.console import Console

from influence_ssl_jax.commands.report import Report


@dataclasses.dataclass(frozen=True)
class Demo:
    """The whole way on bundled images, in minutes, without network or accelerator: pretrain, score, report.

    The images are handwritten digits among which exact and near duplicates, blank images and noise were planted, so
    that it can be told how well the scores find them, beside simpler measures. What is finished is kept: the same
    command given again goes on where it stopped.

    influence-ssl demo --out demo

    Attributes:
        out: Folder for everything: encoder/, scores/ and report.html.
        epochs: Passes over the images in pretraining.
        draws: Noise draws per image.
        seed: Fixes everything random but the bundled images.
    """

    out: Path = Path("demo")
    epochs: int = 30
    draws: int = 4
    seed: int = 0

    def run(self, out: Console) -> None:
        """Pretrain, score, report, and say what was found."""
        from influence_ssl_jax.commands.pretrain import PretrainCommand  # loads the networks: seconds
        from influence_ssl_jax.commands.score import Score
        from influence_ssl_jax.commands.scoring_settings import CurvatureSet
        from influence_ssl_jax.commands.summary import summarise
        from influence_ssl_jax.data import Digits, ToInput
        from influence_ssl_jax.influence.scores import Scoring
        from influence_ssl_jax.losses import SimCLR
        from influence_ssl_jax.train import Architecture, Lars, Pretrain, Probe

        source = Digits()
        training = Pretrain(
            "simclr",
            SimCLR(0.2),
            Architecture(width=8, hidden=128, output=64, normalisation="none"),
            Lars(0.4, warmup_epochs=min(3, self.epochs - 1)),
            epochs=self.epochs,
            batch_size=128,
            seed=self.seed,
        )
        encoder, scores = self.out / "encoder", self.out / "scores"
        out.rule("1  Pretrain without labels", align="left")
        PretrainCommand(encoder, source, training, ToInput(source.size, source.size), Probe(linear=0)).run(out)
        out.rule("2  Score every image", align="left")
        scoring = Scoring(draws=self.draws, seed=self.seed)
        Score(encoder, scores, source, curvature=CurvatureSet(examples=512), scoring=scoring).run(out)
        out.rule("3  Report", align="left")
        Report(scores, out=self.out / "report.html").run(out)
        summarise(scores, out)
