"""How far do ASTRA and LiSSA come with equal products with C, on a trained encoder?

    python -m benchmarks.solvers

The shared ResNet-18 of width 16 (a trained SimCLR encoder), C the sampled Fisher of a few images, scores of further images.
Both start from zero; a step of either takes one product with C, and ASTRA's one solve by EK-FAC besides. Exact scores of the
same C by `Gram`. Every cell (a backend at a λ) is written as it is measured, and a second run continues where a first was
stopped: about ten minutes of one core, INFLUENCE_SSL_TFDS=… names prepared CIFAR-10 (the bundled digits otherwise).
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from benchmarks.results import read, write
from benchmarks.shared import Setting, shared
from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp import ASTRA, Gram, LiSSA
from influence_ssl_jax.ihvp.iterations import IterationState
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        setting: Network and images: the first batches are of C, the last one is scored.
        samples: Draws of the Fisher for each image.
        relative: λ over the mean eigenvalue of C.
        depths: Products with C for each score.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=8, batch=2))
    samples: int = 8
    relative: tuple[float, ...] = (1000.0, 10.0)
    depths: tuple[int, ...] = (3, 10, 30, 100)

    @classmethod
    def tiny(cls) -> "Config":
        """Two batches of a linear network."""
        return cls(Setting("linear", width=4, examples=4, batch=2, size=4), samples=2, relative=(1.0,), depths=(1, 100))


def run(config: Config, held: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure what is not among the cells of an earlier record, and write the record after each."""
    given, key = shared(config.setting), jax.random.key(0)
    last = len(given.batches.index) - 1
    curvature = jax.tree.map(lambda leaf: leaf[:last], given.batches)
    problem = Problem(given.params, given.frozen, curvature, given.objective, "fisher", config.samples)
    scored = jax.tree.map(lambda leaf: leaf[last], given.batches)
    gradients = measured(given.objective, given.params, given.frozen, scored).gradients
    exact, found = jax.jit(Gram().fit)(problem, key), dict(held or {})
    score = jax.jit(Gram().quadratic_form)
    mean = float(Gram().mean_eigenvalue(exact))
    vectors = jax.jit(lambda gradients: gradients.full())(gradients)
    states: dict[str, IterationState] = {}
    for share, backend in itertools.product(config.relative, (ASTRA(samples=config.samples), LiSSA())):
        name = type(backend).__name__
        cell = f"{name} {share:g}"
        if cell in found:
            continue
        if name not in states:
            states[name] = jax.jit(backend.fit)(problem, key)
        damping = jnp.asarray(share * mean, jnp.float32)
        want = np.asarray(score(exact, gradients, damping), float)
        errors = []
        for depth in config.depths:
            got = np.asarray(_forms(backend, states[name], vectors, damping, jnp.asarray(depth)), float)
            errors.append(np.abs(got / want - 1).tolist())
        found[cell] = {"backend": name, "relative": share, "products": list(config.depths), "errors": errors}
        print(cell, [f"{np.median(each):.2g}" for each in errors], flush=True)
        record(config, given.data, found)
    return {"data": given.data, "cells": found}


@functools.partial(jax.jit, static_argnums=0)
def _forms(
    backend: ASTRA | LiSSA, state: IterationState, vectors: Params, damping: Float[Array, ""], depth: Int[Array, ""]
) -> Float[Array, " n"]:
    """`⟨v, x⟩` of every vector after `depth` steps, which is data: one program for all depths."""
    steps = dataclasses.replace(backend, depth=depth)
    return jax.lax.map(lambda v: trees.dot(v, steps.solve(state, v, damping)), vectors)


def record(config: Config, data: str, found: dict[str, Any]) -> None:
    """Write the cells that are measured, if the configuration is the committed one's."""
    if config == Config():
        write("solvers", config, {"data": data, "cells": found})


if __name__ == "__main__":
    chosen, before = tyro.cli(Config), read("solvers")
    run(chosen, before["cells"] if before and chosen == Config() else None)
