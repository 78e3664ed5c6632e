"""The small problems whose truth is known: how they are drawn, and their optimum."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.retrain import Trainer
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.data import Digits, ToInput, resident
from influence_ssl_jax.ihvp import Exact
from influence_ssl_jax.losses import CosineDistance, Loss, SquaredEuclid, Supervised
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch

if TYPE_CHECKING:
    from benchmarks.fidelity import Config


class SmallConv(nn.Module):
    """Two strided convolutions, a mean, a Dense layer: 680 parameters, smooth, so that training converges."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Embed images."""
        del train
        x = jnp.tanh(nn.Conv(6, (3, 3), (2, 2))(x))
        x = jnp.tanh(nn.Conv(8, (3, 3), (2, 2))(x))
        return nn.Dense(8)(x.mean((1, 2)))


class Logistic(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Compute the logits."""
        del train
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class OneView(Views):
    """The image itself."""

    def __call__(self, key: Array, image: Array) -> Array:
        """Return the images as the only view."""
        del key
        return image[None]


TASKS: dict[str, tuple[nn.Module, Views, Loss]] = {
    "linear": (Linear(4), GaussianNoise(), SquaredEuclid()),
    "logistic": (Logistic(), OneView(), Supervised()),
    "convnet": (SmallConv(), GaussianNoise(), CosineDistance()),
}


class Task(NamedTuple):
    """A problem at its optimum.

    Attributes:
        problem: Parameters at the optimum, one batch.
        test: Other examples.
        trainer: Trains it again under other weights of the examples.
        ridge: λ.
        subsets: Half of the examples a row, as Booleans.
    """

    problem: Problem
    test: Batch
    trainer: Trainer
    ridge: float
    subsets: np.ndarray


def data(config: "Config") -> tuple[Batch, Batch]:
    """Training and test digits, in float64, each as one batch."""
    source = Digits(config.size, exact_duplicates=0.0, near_duplicates=0.0, blanks=0.0, noise=0.0).open()
    both = resident(source, ToInput(config.size, config.size), 2 * config.examples, config.examples, 0)
    both = dataclasses.replace(both, image=both.image.astype(jnp.float64) / 255)
    return jax.tree.map(lambda leaf: leaf[:1], both), jax.tree.map(lambda leaf: leaf[1], both)


def task(name: str, seed: int, config: "Config") -> Task:
    """Draw θ₀, choose λ from it, train."""
    module, views, loss = TASKS[name]
    objective, (train, test) = Objective(Network(module), views, loss), data(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), train.image[0, :1])["params"]
    rng = np.random.default_rng(seed)
    start = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / max(1, leaf.size // leaf.shape[-1]) ** 0.5), shapes
    )
    problem = Problem(start, {}, train, objective)
    spectrum = jax.jit(Exact().fit)(problem, jax.random.key(0)).eigenvalues
    ridge = config.ridge * float(jnp.mean(spectrum))
    trainer = Trainer(problem, ridge)
    optimum, _ = trainer.fit(np.ones(config.examples), start)
    chosen = np.stack([rng.permutation(config.examples) < config.examples // 2 for _ in range(config.subsets)])
    return Task(dataclasses.replace(problem, params=optimum), test, trainer, ridge, chosen)
