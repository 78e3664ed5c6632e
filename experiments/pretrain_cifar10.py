"""Do small self-supervised encoders, trained for minutes on two cores, represent CIFAR-10 better than chance does?

They are what the other experiments score: ResNet-18 of width 16 with small heads, 10,000 training images (the first in
tensorflow-datasets' order, which is shuffled), batches of 64. After every epoch, and before the first one, 1,000 test
images are classified by their 20 nearest neighbours among 4,000 training images, and by a linear probe on those.

    python experiments/pretrain_cifar10.py --method simclr --data-dir DIR    # also byol, barlow_twins

An interrupted run goes on where it stopped when the same command is given again. The encoders are stored as float16
with float32 running statistics.
"""

import dataclasses
import os
from pathlib import Path
from typing import Literal

# A CPU fusion of jaxlib 0.10 that this network is slower with; other versions may not know the flag, accelerators
# ignore it. It must be set before jax starts.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import tyro

from influence_ssl_jax.data import Tfds, ToInput
from influence_ssl_jax.losses import BYOL, BarlowTwins, SimCLR
from influence_ssl_jax.train import Architecture, Lars, Pretrain, Probe, Trained, pretrain, save

HERE = Path(__file__).parent

RUNS = {
    "simclr": Pretrain(
        "simclr",
        SimCLR(0.2),
        Architecture(width=16, hidden=512, output=128),
        Lars(0.4, warmup_epochs=1),
        epochs=5,
        batch_size=64,
    ),
    "byol": Pretrain(
        "byol",
        BYOL(),
        Architecture(width=16, hidden=256, output=64, predictor_hidden=256),
        Lars(0.2, eta=0.005, weight_decay=1e-5, warmup_epochs=0),
        epochs=3,
        batch_size=64,
    ),
    "barlow_twins": Pretrain(
        "barlow_twins",
        BarlowTwins(),
        Architecture(width=16, hidden=512, output=512),
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
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        train: The training split.
        test: The split that the probes ask about.
        settings: The run; that of `method` in `RUNS` where None.
        runs: Folder of checkpoints and metrics.
        encoders: Folder of the result.
    """

    method: Literal["simclr", "byol", "barlow_twins"] = "simclr"
    data_dir: str | None = None
    train: str = "train[:10000]"
    test: str = "test[:1000]"
    settings: Pretrain | None = None
    runs: Path = Path("runs/pretrain_cifar10")
    encoders: Path = HERE / "encoders"
    probe: Probe = PROBE


def run(config: Config) -> Trained:
    """Train, and write the encoder."""
    settings = config.settings or RUNS[config.method]
    name = f"{config.method}_w{settings.architecture.width}_cifar10"
    train, test = (Tfds("cifar10", split, config.data_dir).open() for split in (config.train, config.test))
    trained = pretrain(settings, train, ToInput(), config.runs / name, test, config.probe)
    command = f"python experiments/{Path(__file__).name} --method {config.method}"
    save(config.encoders / name, trained, "float16", command=command, data=f"cifar10 {config.train}")
    return trained


if __name__ == "__main__":
    run(tyro.cli(Config))
