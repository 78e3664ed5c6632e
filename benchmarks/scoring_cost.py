"""What does a score cost, as a multiple of one plain gradient over the same batch?

    python benchmarks/scoring_cost.py --width 16 --batch 64

Interleaved repetitions in one process, medians of ratios: machines are noisy, ratios are not. About two minutes on two
cores. Expected at width 16, k = 16: LoGra's scores 0.5–1.0 × a gradient; the exact gradient norm adds its own.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp import Damping, LoGra
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import ResNet18
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Config:
    """One network, one batch.

    Attributes:
        width: Of the ResNet-18.
        batch: Examples, two views each.
        rank: Of LoGra.
        repeats: Interleaved repetitions.
        out: Where the JSON goes.
    """

    width: int = 16
    batch: int = 64
    rank: int = 16
    repeats: int = 7
    out: Path = Path(__file__).parent / "results" / "scoring_cost.json"


def run(config: Config) -> dict[str, float]:
    """Seconds of each operation over the same batch, and ratios to the gradient."""
    module = ResNet18(config.width)
    variables = jax.jit(lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))
    params, frozen = variables["params"], {"batch_stats": variables["batch_stats"]}
    objective = Objective(Network(module), GaussianNoise(), CosineDistance())
    pixels = np.random.default_rng(0).integers(0, 256, (config.batch, 32, 32, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(1), config.batch)
    batch = Batch(jnp.asarray(pixels), keys, jnp.arange(config.batch))
    problem = Problem(params, frozen, jax.tree.map(lambda leaf: leaf[None], batch), objective)
    backend = LoGra(rank=config.rank)
    state = jax.jit(backend.fit)(problem, jax.random.key(2))
    damping = backend.resolve(state, Damping())
    blocks = cut.discover(objective.network, params, frozen, (32, 32, 3))

    def gradients(params, batch):
        return measured(objective, params, frozen, batch).gradients

    operations = {
        "gradient": jax.jit(lambda params, batch: jax.grad(objective)(params, frozen, batch)),
        "forward": jax.jit(lambda params, batch: objective(params, frozen, batch)),
        "logra": jax.jit(lambda params, batch: backend.quadratic_form(state, gradients(params, batch), damping)),
        "gradient_norms": jax.jit(lambda params, batch: gradients(params, batch).gram(blocks)),
        "logra_and_norms": jax.jit(
            lambda params, batch: (
                backend.quadratic_form(state, found := gradients(params, batch), damping),
                found.gram(blocks),
            )
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for repeat in range(config.repeats + 1):
        for name, operation in operations.items():
            begin = time.perf_counter()
            jax.block_until_ready(operation(params, batch))
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - begin)
    ratios = {
        f"{name} / gradient": statistics.median(a / b for a, b in zip(seconds[name], seconds["gradient"], strict=True))
        for name in operations
    }
    return {"seconds of a gradient": statistics.median(seconds["gradient"]), **ratios}


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    found = run(config)
    for name, value in found.items():
        print(f"{name:32} {value:8.3f}")
    settings = {**dataclasses.asdict(config), "out": config.out.name}
    config.out.write_text(
        json.dumps({"config": settings, "found": found, "versions": versions(), "device": device()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
