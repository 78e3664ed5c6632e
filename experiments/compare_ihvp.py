"""Which inverse-Hessian backend is how far from exact scores, at what cost, and which curvature changes the ranking?

The question of every approximation: after calibration on at most 200 images with exact scores, how large is its error,
and what does it know beyond the alignment loss? Asked of a small net, where the truth is the dense matrix:

    python experiments/compare_ihvp.py net --out experiments/results            (minutes, most of it CG and LiSSA)

and of pretrained ResNet-18 encoders (width 16), where it is the Gram matrix of the 1,024 outer products of a sampled
Fisher:

    python experiments/compare_ihvp.py encoder --method simclr_torch --out experiments/results --data-dir DATA
                                                                                (about 20 minutes on two free cores)
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array
from rich.console import Console
from sklearn.datasets import load_digits

from influence_ssl_jax import trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.cli.commands import compare
from influence_ssl_jax.cli.console import print_comparison
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Arrays, ToInput, resident
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.tfds import Tfds
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.comparison import (
    Examples,
    Grid,
    backends_to_compare,
    baselines,
    compare_backends,
    rankings,
)
from influence_ssl_jax.evaluation.exact import exact_scores
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.nets import Network
from influence_ssl_jax.problem import Curvature, Objective, Problem
from influence_ssl_jax.report.backends import baseline_rows, row_as_json, write_figures
from influence_ssl_jax.runs.settings import CompareRun, CurvatureSet
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.types import Batch, Params


class Encoder(nn.Module):
    """Two convolutions and a head, small enough for the dense matrix: 1,112 parameters on 8×8 digits."""

    width: int = 6

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Embed a batch."""
        del train
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=(2, 2), name="stem")(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=(2, 2), name="body")(x))
        return nn.Dense(8, name="head")(x.reshape(x.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class Net:
    """A small net on the bundled digits: every backend against the dense truth, and the curvatures among themselves.

    Attributes:
        out: Folder of the results.
        examples: Images whose scores are compared.
        curvature: Images that C is averaged over.
        steps: SimCLR steps of training.
        dampings: λ over the mean eigenvalue.
        grid: How the backends are varied.
        kinds: Curvatures of either loss that are compared among themselves.
        width: Channels of the first convolution.
    """

    out: Path = Path("runs/compare_ihvp")
    examples: int = 200
    curvature: int = 256
    steps: int = 300
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0)
    grid: Grid = dataclasses.field(default_factory=lambda: Grid((20, 100), (8,), (5, 20), (100,), samples=8))
    kinds: tuple[Curvature, ...] = ("ggn", "fisher", "empirical_fisher", "hessian")
    width: int = 6

    @classmethod
    def tiny(cls, out: Path) -> "Net":
        """Return settings that take seconds on two cores."""
        few = Grid((), (), (), (), samples=1, probes=2)
        return cls(out, 16, 32, 5, (0.1,), few, ("ggn", "hessian"), width=2)

    def run(self, out: Console) -> None:
        """Compare backends, then curvatures; write JSON and figures."""
        problem, examples = trained(self)
        known = exact_scores("dense", problem, *examples[:3], self.dampings, examples.scoring)
        rows = baseline_rows(baselines(problem, examples), known)
        rows += [row_as_json(row) for row in compare_backends(backends_to_compare(self.grid), problem, examples, known)]
        folder = self.out / "compare_net"
        folder.mkdir(parents=True, exist_ok=True)
        write_figures(rows, folder)
        record = {
            "configuration": describe(self),
            "rows": rows,
            "curvatures": curvatures(problem, examples, self.kinds),
        }
        (folder / "comparison.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print_comparison(rows, out)
        for left, row in record["curvatures"].items():
            out.print(f"{left:<32}" + "  ".join(f"{value:.3f}" for value in row.values()), highlight=False)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained ResNet-18 of width 16 on CIFAR-10.

    Attributes:
        method: Which encoder of experiments/encoders.
        out: Folder of the results.
        data_dir: Where tensorflow-datasets keeps CIFAR-10.
        examples: Images whose scores are compared.
        curvature: Images that C is averaged over.
        samples: Draws of the sampled Fisher for each.
        dampings: λ over the mean eigenvalue. The rank of C is a 684th of the parameters, so that up to about a hundred
            times the mean λ is small beside every eigenvalue that is not zero, and a score is the squared norm of what
            of g lies outside the span of C, over λ.
        grid: How the backends are varied. Steps of CG, ASTRA and LiSSA would take a product with C each, for each image.
    """

    method: Literal["simclr_torch", "byol_torch", "barlow_twins_torch"] = "simclr_torch"
    out: Path = Path("runs/compare_ihvp")
    data_dir: Path | None = None
    examples: int = 200
    curvature: int = 64
    samples: int = 16
    dampings: tuple[float, ...] = (0.1, 10.0, 1000.0)
    grid: Grid = dataclasses.field(default_factory=lambda: Grid((24,), (8, 16, 32), (), (), 16, 8, (96,)))

    def run(self, out: Console) -> None:
        """Compare; the same command continues where it was stopped."""
        compare(
            CompareRun(
                encoder=Path(__file__).parent / "encoders" / f"{self.method}_w16_cifar10",
                out=self.out / f"compare_{self.method}_w16_cifar10",
                source=Tfds(
                    "cifar10", split="train[:10000]", data_dir=None if self.data_dir is None else str(self.data_dir)
                ),
                curvature=CurvatureSet(kind="fisher", examples=self.curvature, batch_size=16, samples=self.samples),
                grid=self.grid,
                dampings=self.dampings,
                truth="function_space",
                audit=Audit(examples=self.examples),
            ),
            out,
        )


def trained(config: Net) -> tuple[Problem, Examples]:
    """Return the GGN of a trained network, and digits outside its set."""
    order = np.random.default_rng(0).permutation(1797)
    flat, _ = load_digits(return_X_y=True)
    pixels = np.round(flat[order].reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    half, transform = len(pixels) // 2, ToInput(8, 8, 1)
    known, unseen = Arrays(pixels[:half]).open(), Arrays(pixels[half:]).open()
    module = Encoder(config.width)
    network, views = Network(module, mean=(0.3,), std=(0.37,)), GaussianNoise()
    objective = Objective(network, views, SimCLR(0.5))
    params = trees.astype(module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"], jnp.float64)
    params = _fitted(objective, params, resident(known, transform, 256, 64, 1), config.steps)
    measurement = dataclasses.replace(objective, loss=CosineDistance())
    problem = Problem(params, {}, resident(known, transform, config.curvature, 32, 0), measurement)
    scoring = Scoring(draws=1, batch_size=20)
    chosen = np.arange(config.examples)
    loaded = list(batches(unseen, transform, 20, jax.random.key(0), chosen))
    valid = np.concatenate([part.valid for part in loaded])
    return problem, Examples(measurement, [part.batch for part in loaded], valid, scoring)


def _fitted(objective: Objective, params: Params, data: Batch, steps: int) -> Params:
    """Train by some steps of Adam, with fresh noise in each."""
    optimiser = optax.adam(3e-3)

    def step(carry: tuple[Params, optax.OptState], i: Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        batch = jax.tree.map(lambda leaf: leaf[i % data.index.shape[0]], data)
        fresh = dataclasses.replace(batch, key=jax.vmap(lambda key: jax.random.fold_in(key, i))(batch.key))
        updates, state = optimiser.update(jax.grad(objective)(params, {}, fresh), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimiser.init(p)), jnp.arange(steps))[0][0])(params)


def curvatures(problem: Problem, examples: Examples, kinds: Sequence[Curvature]) -> dict[str, dict[str, float]]:
    """Correlate the exact scores by every curvature with each other."""
    simclr = dataclasses.replace(problem.objective, loss=SimCLR(0.5))
    choices = {
        f"{kind} of {name}": dataclasses.replace(problem, objective=objective, curvature=kind, samples=8)
        for name, objective in (("measurement", problem.objective), ("simclr", simclr))
        for kind in kinds
    }
    return rankings(choices, examples)


if __name__ == "__main__":
    chosen = tyro.cli(
        Annotated[Net, tyro.conf.subcommand("net")] | Annotated[Pretrained, tyro.conf.subcommand("encoder")],
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    with jax.enable_x64(isinstance(chosen, Net)):
        chosen.run(Console())
