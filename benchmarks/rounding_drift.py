"""Why do two float32 pretrainings part: many devices against one, and a start that is moved by one rounding against none?

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.rounding_drift

SimCLR on ResNet-18 of width 4, bundled digits of 16 × 16 pixels, batches of 32, LARS, 40 steps: on one device, split over
eight, and on one device from parameters moved to a neighbouring number each, up or down at random (two draws). The same
with BatchNorm's variance in two passes, E[(x − E x)²] in place of E[x²] − (E x)²; with silu in place of relu, which has
no kink for rounding to cross; and in float64, where a split that did anything else than round would show. About five
minutes on two cores. Expected: eight devices part from one as the moved start does and at the same rate, in either form
of the variance; two orders less without kinks; in float64 twelve digits stay.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import flax.linen as nn
import flax.linen.normalization as normalization
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from influence_ssl_jax import trees
from influence_ssl_jax.data import Digits, ToInput, cache, epoch
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.train import state as training
from influence_ssl_jax.train import tiny
from influence_ssl_jax.train.resume import Layout
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.types import Batch, Params

SHOWN = (1, 2, 5, 10, 20, 40)
SINGLE = dataclasses.replace(tiny(SimCLR(0.2)), epochs=100)


@dataclasses.dataclass(frozen=True)
class DrawnInDouble(Objective):
    """Views in float64, whatever type is requested."""

    def images(self, batch, dtype):
        del dtype
        return super().images(batch, jnp.float64)


@dataclasses.dataclass(frozen=True)
class Double(Pretrain):
    """The same run with every number in float64."""

    def objective(self, dtype=None):
        del dtype
        whole = super().objective(jnp.float64)
        return DrawnInDouble(whole.network, whole.views, whole.loss)


DOUBLE = Double(**{field.name: getattr(SINGLE, field.name) for field in dataclasses.fields(Pretrain)})


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and where to.

    Attributes:
        steps: Steps of every run.
        size: Pixels of an image's side.
        out: Where the JSON goes.
    """

    steps: int = 40
    size: int = 16
    out: Path = Path(__file__).parent / "results" / "rounding_drift.json"


def two_passes() -> contextlib.AbstractContextManager:
    """Compute BatchNorm's variance around its mean."""
    whole = normalization._compute_stats
    return mock.patch.object(
        normalization, "_compute_stats", lambda *given, **named: whole(*given, **{**named, "use_fast_variance": False})
    )


def moved(params: Params, seed: int) -> Params:
    """Replace every number by the next one, up or down."""
    draw = np.random.default_rng(seed)

    def one(leaf: jax.Array) -> jax.Array:
        towards = np.where(draw.uniform(size=leaf.shape) < 0.5, -np.inf, np.inf).astype(leaf.dtype)
        return jnp.asarray(np.nextafter(np.asarray(leaf), towards))

    return jax.tree.map(one, params)


def batches(config: Config, layout: Layout) -> Iterator[Batch]:
    """Return the first `steps` batches of a run."""
    transform = ToInput(config.size, config.size, 3)
    source = cache(Digits(size=config.size).open(), transform)
    given = (source, transform, SINGLE.batch_size, SINGLE.seed)
    every = (
        loaded.batch
        for number in range(1, SINGLE.epochs + 1)
        for loaded in epoch(*given, number, part=layout.part, place=layout.place)
    )
    return (batch for batch, _ in zip(every, range(config.steps), strict=False))


def path(settings: Pretrain, state: training.TrainState, config: Config, layout: Layout) -> list[np.ndarray]:
    """Return the parameters after every step."""
    step, positions = training.make_step(settings, 50), []
    state = layout.everywhere(jax.tree.map(jnp.copy, state))
    for batch in batches(config, layout):
        state, _ = step(state, batch)
        positions.append(
            np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params)])
        )
    return positions


def parted(config: Config, settings: Pretrain = SINGLE) -> dict[str, dict[int, float]]:
    """Measure `‖θ − θ'‖ / ‖θ‖` after some steps.

    θ is computed on one device from the start, θ' otherwise.
    """
    training.make_step.cache_clear()
    start = training.initial(settings, (config.size, config.size, 3))
    if settings is DOUBLE:
        start = dataclasses.replace(trees.astype(start, jnp.float64), step=start.step)
    alone, apart = Layout(), Layout.of(settings.batch_size)

    def pushed(seed: int) -> training.TrainState:
        return dataclasses.replace(start, params=moved(start.params, seed))

    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        f"{jax.device_count()} devices": lambda: path(settings, start, config, apart),
        "moved start": lambda: path(settings, pushed(1), config, alone),
        "start moved otherwise": lambda: path(settings, pushed(2), config, alone),
    }
    whole = path(settings, start, config, alone)
    at = [step for step in SHOWN if step <= config.steps]
    distances = {}
    for name, way in ways.items():
        other = way()
        distance = {k: np.linalg.norm(other[k - 1] - whole[k - 1]) / np.linalg.norm(whole[k - 1]) for k in at}
        distances[name] = {step: float(f"{value:.2g}") for step, value in distance.items()}
        print(type(settings).__name__, name, distances[name], flush=True)
    return distances


def run(config: Config) -> dict:
    """Measure both forms of the variance, and float64."""
    distances = {"float32": parted(config)}
    with two_passes():
        distances["float32, variance in two passes"] = parted(config)
    with mock.patch.object(nn, "relu", nn.silu):
        distances["float32, silu for relu"] = parted(config)
    with jax.enable_x64(True):
        distances["float64"] = parted(config, DOUBLE)
    return distances


def main() -> None:
    """Train, print, write."""
    config = tyro.cli(Config)
    record = {"config": {"steps": config.steps, "size": config.size}, "parted": run(config)}
    config.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
