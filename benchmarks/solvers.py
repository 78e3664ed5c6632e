"""How far do ASTRA and LiSSA come with equal products with C, on trained encoders?

    python -m benchmarks.solvers net          1,112 parameters, digits, GGN, dense truth, float64: a minute of one core
    python -m benchmarks.solvers resnet18     700,176 parameters, a sampled Fisher of 6 images, exact scores by Gram,
                                              float32: some ten minutes of one core; INFLUENCE_SSL_TFDS=… names
                                              prepared CIFAR-10

`net` is the encoder of `experiments/compare_ihvp.py`, `resnet18` the committed SimCLR encoder of width 16. Both solvers
start from zero; a step of either takes one product with C, and ASTRA's one solve by EK-FAC besides. Fitting takes products
too: LiSSA 20 for the largest eigenvalue, ASTRA 80 for the length of its steps and an EK-FAC. Every cell (a backend at
a λ) is written as it is measured, and a second run continues where a first was stopped.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from benchmarks.results import read, write
from benchmarks.shared import Setting, shared
from experiments.compare_ihvp import Net, trained
from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.ihvp import ASTRA, Backend, Exact, Gram, LiSSA
from influence_ssl_jax.ihvp.backend import scalar
from influence_ssl_jax.ihvp.iterations import Iterations, IterationState
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params, PyTree


class Task(NamedTuple):
    """Whose scores are solved for.

    Attributes:
        problem: Which C.
        gradients: Of the scored images.
        truth: A backend that is exact for this C.
        data: Name of the images.
    """

    problem: Problem
    gradients: ExampleGradients
    truth: Backend
    data: str


@dataclasses.dataclass(frozen=True)
class SmallNet:
    """A small net on the bundled digits, in float64.

    Attributes:
        curvature: Digits that C is averaged over.
        images: Digits that are scored.
        samples: Draws of ASTRA's EK-FAC for each digit.
        relative: λ over the mean eigenvalue of C.
        depths: Products with C for each score.
    """

    curvature: int = 256
    images: int = 8
    samples: int = 8
    relative: tuple[float, ...] = (1.0, 0.1, 0.01)
    depths: tuple[int, ...] = (3, 10, 30, 100, 300)

    def task(self) -> Task:
        """The trained net, and digits that C has not seen."""
        jax.config.update("jax_enable_x64", True)
        problem, examples = trained(Net(examples=self.images, curvature=self.curvature))
        scored = jax.tree.map(lambda leaf: leaf[: self.images], examples.batches[0])
        found = measure(examples.measurement, problem.params, problem.frozen, scored)
        return Task(problem, found.gradients, Exact(), "digits")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The shared ResNet-18 of width 16, in float32.

    Attributes:
        setting: Network and images: the first batches are of C, the last one is scored.
        samples: Draws of the Fisher, and of ASTRA's EK-FAC, for each image.
        relative: λ over the mean eigenvalue of C.
        depths: Products with C for each score.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=8, batch=2))
    samples: int = 8
    relative: tuple[float, ...] = (1000.0, 10.0)
    depths: tuple[int, ...] = (3, 10, 30, 100)

    def task(self) -> Task:
        """The encoder and its images."""
        given = shared(self.setting)
        last = len(given.batches.index) - 1
        curvature = jax.tree.map(lambda leaf: leaf[:last], given.batches)
        problem = Problem(given.params, given.frozen, curvature, given.objective, "fisher", self.samples)
        scored = jax.tree.map(lambda leaf: leaf[last], given.batches)
        return Task(problem, measure(given.objective, given.params, given.frozen, scored).gradients, Gram(), given.data)


def race(config: SmallNet | Pretrained, task: Task, found: dict[str, Any], keep: Callable[[], object]) -> None:
    """Measure the cells that are not among those found, and keep them after each."""
    key, states = jax.random.key(0), {}
    exact = jax.jit(task.truth.fit)(task.problem, key)
    score, vectors = jax.jit(task.truth.quadratic_form), jax.jit(lambda gradients: gradients.full())(task.gradients)
    mean = float(scalar(task.truth.mean_eigenvalue(exact)))
    for share, backend in itertools.product(config.relative, (ASTRA(samples=config.samples), LiSSA())):
        name = type(backend).__name__
        cell = f"{name} {share:g}"
        if cell in found:
            continue
        if name not in states:
            states[name] = jax.jit(backend.fit)(task.problem, key)
        damping = jnp.asarray(share * mean, task.gradients.cotangents.dtype)
        want = np.asarray(score(exact, task.gradients, damping), float)
        errors = []
        for depth in config.depths:
            got = np.asarray(_forms(backend, states[name], vectors, damping, jnp.asarray(depth)), float)
            errors.append(np.abs(got / want - 1).tolist())
        found[cell] = {"backend": name, "relative": share, "products": list(config.depths), "errors": errors}
        print(cell, [f"{np.median(each):.2g}" for each in errors], flush=True)
        keep()


@partial(jax.jit, static_argnums=0)
def _forms(
    backend: Iterations[Any], state: IterationState, vectors: Params, damping: Float[Array, ""], depth: Int[Array, ""]
) -> Float[Array, " n"]:
    """`⟨v, x⟩` of every vector after `depth` steps, which is data: one program for all depths."""
    steps = dataclasses.replace(backend, depth=depth)

    def form(v: PyTree) -> Float[Array, ""]:
        return trees.dot(v, steps.solve(state, v, damping))

    return jax.lax.map(form, vectors)


def main() -> None:
    """Race on one encoder."""
    net, resnet = tyro.conf.subcommand("net"), tyro.conf.subcommand("resnet18")
    config = tyro.cli(Annotated[SmallNet, net] | Annotated[Pretrained, resnet])
    name = f"solvers_{'net' if isinstance(config, SmallNet) else 'resnet18'}"
    before = read(name)
    found = dict(before["cells"]) if before else {}
    task = config.task()
    race(config, task, found, lambda: write(name, config, {"data": task.data, "cells": found}))


if __name__ == "__main__":
    main()
