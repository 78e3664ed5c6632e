"""Run by `test_registries.py`: add an entry to each list, in that one place, and walk the command line with all of them."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
from rich.console import Console

from influence_ssl_jax import data, ihvp, losses
from influence_ssl_jax.augment import recipes
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.data.arrays import InMemory
from influence_ssl_jax.data.examples import OpenSource
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.ihvp import Backend, Exact, Grid, Identity
from influence_ssl_jax.losses import SimCLR, SquaredEuclid
from influence_ssl_jax.nets import architectures


@dataclasses.dataclass(frozen=True)
class Plain(Identity):
    """The identity under another name, with a grid of its own.

    Attributes:
        rank: A number that tells settings apart.
    """

    rank: int = 1
    when_to_use: ClassVar[str] = "Never, but in this test."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Two settings."""
        return (cls(probes=grid.probes, rank=5), cls(probes=grid.probes, rank=7))


@dataclasses.dataclass(frozen=True)
class Distance(SquaredEuclid):
    """A measurement of this test."""


@dataclasses.dataclass(frozen=True)
class Contrast(SimCLR):
    """A training loss of this test."""


class Flat(nn.Module):
    """A network of this test.

    Attributes:
        features: Width of the embedding.
    """

    features: int

    @nn.compact
    def __call__(self, images, train: bool = False):
        del train
        return nn.Dense(self.features)(images.reshape(len(images), -1))


@dataclasses.dataclass(frozen=True)
class RandomDots(Source):
    """Images of this test.

    Attributes:
        count: How many.
    """

    count: int = 12

    def _open(self) -> OpenSource:
        return InMemory(np.random.default_rng(0).integers(0, 256, (self.count, 4, 4, 3), np.uint8))


ihvp.BACKENDS += (Plain,)
losses.MEASUREMENTS += (Distance,)
losses.TRAINING_LOSSES += (Contrast,)
recipes.PERTURBATIONS["faint"] = GaussianNoise(0.05)
architectures.ARCHITECTURES += (Flat,)
data.SOURCES += (RandomDots,)


def main(folder: Path) -> None:
    """Print as JSON what each command line said and returned."""
    from influence_ssl_jax import Encoder, ToInput
    from influence_ssl_jax.cli import main

    network = Flat(3)
    variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))
    Encoder.from_linen(network, variables, input=ToInput(4, 4)).save(folder / "encoder")
    shared = ["--encoder", str(folder / "encoder"), "--curvature.examples", "6", "--curvature.batch-size", "6"]
    chosen = ["source:random-dots", "perturbation:augmentation", "--perturbation.name", "faint", "measurement:distance"]
    scored, compared = folder / "scores", folder / "compared"
    run = ["score", *shared, "--out", str(scored), "--batch-size", "6"]
    lines = {
        "score --help": ["score", "--help"],
        "perturbations": ["score", "--help", "perturbation:augmentation"],
        "pretrain --help": ["pretrain", "--help"],
        "contrast": ["pretrain", "--help", "training:contrast"],
        "score": [*run, *chosen, "backend:plain", "--backend.rank", "3"],
        "report": ["report", str(scored), "--resamples", "5"],
        "compare": ["compare", *shared, "--out", str(compared), "--examples", "6", "--dampings", "0.1", *chosen],
    }
    said = {}
    for name, words in lines.items():
        if name == "compare":
            ihvp.BACKENDS = (Exact, Plain)  # the others are raced in their own tests
        out = Console(width=200, force_terminal=False)
        with out.capture() as printed:
            status = main.run(words, out, out)
        said[name] = {"status": status, "text": printed.get()}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
