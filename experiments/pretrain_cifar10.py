"""Do small self-supervised encoders, trained for minutes on two cores, represent CIFAR-10 better than chance does?

They are what the other experiments score: ResNet-18 of width 16 with small heads, 10,000 training images (the first in
tensorflow-datasets' order, which is shuffled), batches of 64. After every epoch, and before the first one, 1,000 test
images are classified by their 20 nearest neighbours among 4,000 training images, and by a linear probe on those.

    python experiments/pretrain_cifar10.py --method simclr --data-dir DIR    # also byol, barlow_twins

Time: about 15 to 25 minutes each on two busy cores (30 to 65 images/s). Expected accuracy of the 20 nearest neighbours
(linear probe), untrained 0.253 (0.278); after the last epoch SimCLR 0.352 (0.420) of 5, Barlow Twins 0.318 (0.390) and
BYOL 0.308 (0.351) of 3; one standard error is 0.015.

An interrupted run continues where it stopped if the same command is given again. The encoders are stored as float16
with float32 running statistics.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.data import Digits, OpenSource, Tfds, ToInput
from influence_ssl_jax.data.channel_statistics import STATISTICS
from influence_ssl_jax.losses import BYOL, BarlowTwins, SimCLR
from influence_ssl_jax.train import Architecture, Lars, Pretrain, Probe, Trained, pretrain, save, tiny

HERE = Path(__file__).parent

# Rates are not scaled by the batch here. In batches of 64 solo-learn takes a quarter of each: SimCLR's 0.4 is four times
# its rate, and learned. Barlow Twins at 0.3, four times solo-learn's 0.075, fell to a kNN accuracy of 0.193 after two
# epochs, below the untrained network; solo-learn's own rate was not tried. It and BYOL, of which nothing else was tried,
# take smaller steps.
MEAN, STD = STATISTICS["cifar10"]
RUNS = {
    "simclr": Pretrain(
        "simclr",
        SimCLR(0.2),
        Architecture(width=16, hidden=512, output=128, mean=MEAN, std=STD),
        Lars(0.4, warmup_epochs=1),
        epochs=5,
        batch_size=64,
    ),
    "byol": Pretrain(
        "byol",
        BYOL(),
        Architecture(width=16, hidden=256, output=64, predictor_hidden=256, mean=MEAN, std=STD),
        Lars(0.2, eta=0.005, weight_decay=1e-5, warmup_epochs=0),
        epochs=3,
        batch_size=64,
    ),
    "barlow_twins": Pretrain(
        "barlow_twins",
        BarlowTwins(),
        Architecture(width=16, hidden=512, output=512, mean=MEAN, std=STD),
        Lars(0.1, eta=0.005, warmup_epochs=0),
        epochs=3,
        batch_size=64,
    ),
}


PROBE = Probe(bank=4000, queries=1000, linear=50)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        method: Which loss.
        images: Which data: CIFAR-10, or the bundled digits, which need no download.
        pixels: Height and width of the input.
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        train: The training split.
        test: The split that the probes ask about.
        settings: The run; that of `method` in `RUNS` where None.
        runs: Folder of checkpoints and metrics.
        encoders: Folder of the result.
    """

    method: Literal["simclr", "byol", "barlow_twins"] = "simclr"
    images: Literal["cifar10", "digits"] = "cifar10"
    pixels: int = 32
    data_dir: str | None = None
    train: str = "train[:10000]"
    test: str = "test[:1000]"
    settings: Pretrain | None = None
    runs: Path = Path("runs/pretrain_cifar10")
    encoders: Path = HERE / "encoders"
    probe: Probe = PROBE

    @classmethod
    def tiny(cls, folder: Path) -> "Config":
        """Return settings that run every step on a few small digits."""
        settings = dataclasses.replace(tiny(SimCLR()), epochs=1)
        probe = Probe(bank=32, queries=32, linear=10)
        return cls(
            images="digits",
            pixels=8,
            settings=settings,
            runs=folder / "runs",
            encoders=folder / "encoders",
            probe=probe,
        )

    def sources(self) -> tuple[OpenSource, OpenSource]:
        """Training and test examples."""
        if self.images == "digits":
            return Digits(self.pixels, digits=64).open(), Digits(self.pixels, digits=64, seed=1).open()
        train, test = (Tfds("cifar10", split, self.data_dir).open() for split in (self.train, self.test))
        return train, test


def run(config: Config) -> Trained:
    """Train, and write the encoder."""
    settings = config.settings or RUNS[config.method]
    name = f"{config.method}_w{settings.architecture.width}_{config.images}"
    train, test = config.sources()
    transform = ToInput(config.pixels, config.pixels)
    trained = pretrain(settings, train, transform, config.runs / name, test, config.probe, progress=Renderer(Console()))
    command = f"python experiments/{Path(__file__).name} --method {config.method}"
    save(config.encoders / name, trained, "float16", command=command, data=f"{config.images} {config.train}")
    return trained


if __name__ == "__main__":
    keep_convolutions_whole()
    run(tyro.cli(Config))
