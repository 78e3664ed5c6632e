"""What does a score cost, as a multiple of one plain gradient over the same batch?

    python benchmarks/scoring_cost.py

For each width of the ResNet-18 and each rank: LoGra's quadratic form alone; that with the exact gradient norms; and what
a user's run computes for a batch, the score with every baseline but the nearest neighbours (`Scorer`). One draw, two
views; interleaved repetitions in one process, medians of ratios: machines are noisy, ratios are not. About five
minutes on two free cores, most of it compiling.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.ihvp import LoGra
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import ResNet18
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """Which networks, and how long.

    Attributes:
        widths: Of the ResNet-18.
        ranks: Of LoGra.
        batches: Examples of a batch, for each width.
        repeats: Interleaved repetitions.
        out: Where the JSON goes.
    """

    widths: tuple[int, ...] = (16, 64)
    ranks: tuple[int, ...] = (16, 32)
    batches: tuple[int, ...] = (64, 16)
    repeats: int = 7
    out: Path = Path(__file__).parent / "results" / "scoring_cost.json"


def measure_widths(width: int, size: int, ranks: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """Measure a gradient, and the other operations as multiples, for each rank."""
    problem = over_noise(width, size)
    objective, batch = problem.objective, jax.tree.map(lambda leaf: leaf[0], problem.batches)
    operations: dict[str, Callable[[Params, Batch], object]] = {
        "gradient": jax.jit(lambda params, batch: jax.grad(objective)(params, problem.frozen, batch)),
        "forward": jax.jit(lambda params, batch: objective(params, problem.frozen, batch)),
    }
    for rank in ranks:
        operations |= scored_with(Scorer.fit(problem, LoGra(rank=rank), Scoring(draws=1)), rank)
    seconds = timed(operations, problem.params, batch, repeats)

    def ratio(name: str) -> float:
        pairs = zip(seconds[name], seconds["gradient"], strict=True)
        return round(statistics.median(own / plain for own, plain in pairs), 3)

    names = ("gradient norms", "LoGra", "LoGra with norms", "LoGra with all baselines")
    return [
        {
            "width": width,
            "batch": size,
            "rank": rank,
            "seconds of a gradient": round(statistics.median(seconds["gradient"]), 3),
            "forward": ratio("forward"),
            **{name: ratio(f"{name} {rank}") for name in names},
        }
        for rank in ranks
    ]


def over_noise(width: int, size: int) -> Problem:
    """Return a random network with one batch of noise images."""
    module = ResNet18(width)
    variables = jax.jit(lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    batch = Batch(jnp.asarray(pixels), jax.random.split(jax.random.key(1), size), jnp.arange(size))
    objective = Objective(Network(module), GaussianNoise(), CosineDistance())
    frozen = {"batch_stats": variables["batch_stats"]}
    return Problem(variables["params"], frozen, jax.tree.map(lambda leaf: leaf[None], batch), objective)


def scored_with(scorer: Scorer, rank: int) -> dict[str, Callable[[Params, Batch], object]]:
    """Return the operations of a score, alone and with the baselines."""

    def gradients(params: Params, batch: Batch) -> ExampleGradients:
        return measure(scorer.measurement, params, scorer.problem.frozen, batch).gradients

    def form(drawn: ExampleGradients) -> jax.Array:
        return scorer.backend.quadratic_form(scorer.state, drawn, scorer.damping)

    def both(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        drawn = gradients(params, batch)
        return form(drawn), drawn.squared_norms(scorer.blocks)

    return {
        f"gradient norms {rank}": jax.jit(lambda p, batch: gradients(p, batch).squared_norms(scorer.blocks)),
        f"LoGra {rank}": jax.jit(lambda p, batch: form(gradients(p, batch))),
        f"LoGra with norms {rank}": jax.jit(both),
        f"LoGra with all baselines {rank}": lambda _, batch: scorer(batch),
    }


def timed(
    operations: dict[str, Callable[[Params, Batch], object]], params: Params, batch: Batch, repeats: int
) -> dict[str, list[float]]:
    """Time every repetition without the first, which compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for repeat in range(repeats + 1):
        for name, operation in operations.items():
            begin = time.perf_counter()
            jax.block_until_ready(operation(params, batch))
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    rows = []
    for width, size in zip(config.widths, config.batches, strict=True):
        for row in measure_widths(width, size, config.ranks, config.repeats):
            print(json.dumps(row), flush=True)
            rows.append(row)
    machine = {"cores": os.cpu_count(), **device()}
    record = {"multiples of one gradient of the batch": rows, "machine": machine, "versions": versions()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
