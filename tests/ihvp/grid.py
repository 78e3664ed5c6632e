"""Problems whose layers' curvature is an exact Kronecker product: every input meets every output-gradient."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import trees
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.losses import Loss
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch
from tests import problems


@dataclasses.dataclass(frozen=True)
class Given(Loss):
    """`mean_b ⟨z_b, c_label⟩`: an example's label chooses its gradient."""

    cotangents: tuple[tuple[float, ...], ...]
    views: ClassVar[int] = 1
    separable: ClassVar[bool] = True

    def outputs(self, embeddings):
        return jnp.sum(embeddings.online[0] * jnp.asarray(self.cotangents)[embeddings.label], axis=1)

    def head(self, outputs):
        return jnp.mean(outputs)

    def head_square_root(self, outputs, noise):
        return 0.0 * outputs * noise  # a linear head has no curvature


@dataclasses.dataclass(frozen=True)
class Still(Views):
    """The image as it is."""

    def __call__(self, key, image):
        del key
        return image[None]


class Deep(nn.Module):
    """Linear layers with biases."""

    widths: tuple[int, ...] = (3, 2)
    bias: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width, use_bias=self.bias)(x)
        return x


def given(images, cotangents, labels, module, num_batches=1) -> Problem:
    """The empirical Fisher of examples with these images and cotangents."""
    loss = Given(tuple(map(tuple, np.asarray(cotangents, float).tolist())))
    params, frozen = problems.variables(module, 0, images.shape[1], images.shape[3])
    keys = jax.random.split(jax.random.key(0), len(images))
    batch = Batch(jnp.asarray(images), keys, jnp.arange(len(images)), jnp.asarray(labels))
    batches = jax.tree.map(lambda leaf: leaf.reshape(num_batches, -1, *leaf.shape[1:]), batch)
    return Problem(params, frozen, batches, Objective(Network(module), Still(), loss), "empirical_fisher")


def grid(inputs, cotangents, module, num_batches=1) -> Problem:
    """Every row of `inputs` with every row of `cotangents`."""
    images = np.repeat(inputs, len(cotangents), axis=0)[:, None, None]
    return given(images, cotangents, np.tile(np.arange(len(cotangents)), len(inputs)), module, num_batches)


def with_spectrum(eigenvalues, seed):
    """Rows whose second moment (their mean outer product) has these eigenvalues, in a random position."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return np.sqrt(len(eigenvalues) * np.asarray(eigenvalues))[:, None] * rotation


def places(problem: Problem, block):
    """A block's own parameters, row by row, as positions in the ravelled vector of all."""
    numbered = trees.unravel(problem.params, jnp.arange(trees.size(problem.params), dtype=float))
    return np.asarray(block.read(numbered)).astype(int).ravel()


def example_gradients(problem: Problem):
    """Every example's own gradient, one at a time: leaves [examples, …]."""
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problem.batches)

    def one(example):
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return jax.grad(problem.objective)(problem.params, problem.frozen, alone)

    return jax.jit(jax.vmap(one))(batch)


def measured_by(problem: Problem, seed=0) -> ExampleGradients:
    """Gradients of random cotangents at the problem's first batch."""
    batch = problems.first_batch(problem)
    images = problem.objective.images(batch, jnp.float64)
    width = jax.eval_shape(lambda: problem.objective.embed(problem.params, problem.frozen, images)).shape
    cotangents = jnp.asarray(np.random.default_rng(seed).normal(size=width))
    return ExampleGradients(problem.params, problem.frozen, images, cotangents, problem.objective.network)
