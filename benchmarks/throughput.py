"""Scores per second of ResNet-18 with every scalable backend, as multiples of one plain gradient over the same images.

    python benchmarks/throughput.py --widths 16 64

A score is what the command line computes: one draw of noise, the form, the gradient's norm and the baselines of a batch.
Fitted states are filled with ones: their values cost nothing. Interleaved repetitions in one process, medians of ratios.
With `--precision bfloat16` layers compute in 16 bits. On two cores about ten minutes, most of them compiling; on a GPU
give a larger batch. Expected: what takes no product with a vector costs about a gradient, gradient norms included;
forward mode (Arnoldi, Nystrom) costs half a gradient for each vector.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.ihvp import EKFAC, KFAC, Arnoldi, Backend, Deflated, Diagonal, Identity, LoGra, Nystrom
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import ResNet18
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.scoring.fitting import shapes
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.train.settings import Precision
from influence_ssl_jax.types import Batch

BACKENDS: dict[str, Backend] = {
    "LoGra, rank 16": LoGra(rank=16),
    "EK-FAC, rank 64": EKFAC(rank=64),
    "EK-FAC": EKFAC(),
    "K-FAC": KFAC(),
    "diagonal": Diagonal(),
    "identity": Identity(),
    "Arnoldi, rank 16": Arnoldi(rank=16),
    "Nystrom, rank 16": Nystrom(rank=16),
    "Deflated, rank 16": Deflated(rank=16),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        widths: Of the network.
        batch: Images at a time.
        precision: What layers compute in.
        repeats: Interleaved repetitions.
        out: Where the JSON goes.
    """

    widths: tuple[int, ...] = (16, 64)
    batch: int = 32
    precision: Precision = "float32"
    repeats: int = 5
    out: Path = Path(__file__).parent / "results" / "throughput.json"


def a_problem(width: int, config: Config) -> Problem:
    """Return a problem of random parameters and images."""
    module = ResNet18(width, None if config.precision == "float32" else config.precision)
    drawn = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.05 * rng.normal(size=leaf.shape), jnp.float32), drawn["params"])
    frozen = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), drawn["batch_stats"])
    pixels = jnp.asarray(rng.integers(0, 256, (1, config.batch, 32, 32, 3), dtype=np.uint8))
    keys = jax.random.split(jax.random.key(1), (1, config.batch))
    batch = Batch(pixels, keys, jnp.arange(config.batch)[None])
    return Problem(
        params, {"batch_stats": frozen}, batch, Objective(Network(module), GaussianNoise(), CosineDistance())
    )


def a_scorer(problem: Problem, backend: Backend, config: Config) -> Scorer:
    """Return a scorer with a state of ones."""
    leaves, structure = shapes(problem, backend, 0)
    state = jax.tree.unflatten(structure, [jnp.ones(leaf.shape, leaf.dtype) for leaf in leaves])
    return Scorer.of(problem, state, backend, Scoring(draws=1, batch_size=config.batch))


def measure(width: int, config: Config) -> dict[str, dict[str, float]]:
    """Measure seconds and ratios at one width."""
    problem = a_problem(width, config)
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    gradient = jax.jit(lambda params: jax.grad(problem.objective)(params, problem.frozen, batch))
    operations: dict[str, Callable[[], object]] = {"gradient": lambda: gradient(problem.params)}
    for name, backend in BACKENDS.items():
        scorer = a_scorer(problem, backend, config)
        operations[name] = lambda scorer=scorer: scorer(batch)
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for repeat in range(config.repeats + 1):
        for name, operation in operations.items():
            began = time.perf_counter()
            jax.block_until_ready(operation())
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    speeds = {}
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["gradient"], strict=True))
        speeds[name] = {"images per second": config.batch / statistics.median(taken), "gradients": ratio}
        print(
            f"width {width:3}  {name:16} {speeds[name]['images per second']:9.1f} /s  {ratio:6.2f} × a gradient",
            flush=True,
        )
    return speeds


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    keep_convolutions_whole()
    speeds = {str(width): measure(width, config) for width in config.widths}
    settings = {**dataclasses.asdict(config), "out": config.out.name}
    config.out.parent.mkdir(exist_ok=True)
    record = {"config": settings, "found": speeds, "versions": versions(), "device": device()}
    config.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
