"""Small problems whose curvature is known densely: convolutional and linear nets × losses × curvatures, in float64."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.losses import (
    BYOL,
    MEASUREMENTS,
    TRAINING_LOSSES,
    BarlowTwins,
    CosineDistance,
    Loss,
    SimCLR,
    SimSiam,
    SquaredEuclid,
    Supervised,
    VICReg,
)
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Curvature, Objective, Problem
from influence_ssl_jax.types import Batch

LOSSES: tuple[Loss, ...] = (
    SimCLR(temperature=0.5),
    BYOL(),
    BarlowTwins(off_diagonal=0.1),
    SimSiam(),
    VICReg(1.0, 1.0, 0.5),
    Supervised(),
    CosineDistance(),
    SquaredEuclid(),
)
REGISTERED = {*TRAINING_LOSSES, *MEASUREMENTS}
MISSING = sorted(each.__name__ for each in REGISTERED - {type(loss) for loss in LOSSES})
assert not MISSING, f"Add an instance of each of {MISSING} to LOSSES in tests/problems.py."
SIZE = 6


class ConvNet(nn.Module):
    """Strided and padded convolutions with and without bias, BatchNorm, a Dense layer called twice, a head."""

    width: int = 4
    outputs: int = 5

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3), name="stem")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(self.width, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)], use_bias=False, name="down")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, name="norm2")(x))
        shared = nn.Dense(self.width, name="shared")
        x = jnp.tanh(shared(jnp.tanh(shared(x))))
        return nn.Dense(self.outputs, name="head")(x.mean((1, 2)))


class Small(nn.Module):
    """A strided convolution, BatchNorm, a head: one layer of each kind, quick to compile."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(2, (3, 3), strides=(2, 2), name="conv")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Linear(nn.Module):
    """`W x` on flattened pixels."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        return nn.Dense(self.outputs, use_bias=False, name="linear")(x.reshape(x.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class Noisy(Views):
    """The image `copies` times, each after the first with noise."""

    copies: int = 2
    sigma: float = 0.3

    def __call__(self, key, image):
        noise = hashed_noise(key, (self.copies - 1) * image.size).reshape(self.copies - 1, *image.shape)
        return jnp.concatenate([image[None], image[None] + self.sigma * noise.astype(image.dtype)])


def hashed_noise(key, size):
    """Uniform noise of [−2, 2) from MurmurHash3's last steps: JAX's generators take ten times as long to compile."""
    first, second = jax.random.key_data(key)
    bits = jnp.arange(1, size + 1, dtype=jnp.uint32) * np.uint32(0x9E3779B1) + first
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B) ^ second
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return (bits >> 8).astype("float32") * 2.0**-22 - 2  # exact in float32, so the same in every type


def network(module: nn.Module) -> Network:
    return Network(module, mean=(0.4,), std=(0.5,))


def variables(module: nn.Module, seed: int = 0, size: int = SIZE, channels: int = 2):
    """Random parameters and running statistics in float64, drawn by numpy: JAX's generators are slow to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, channels)), train=False))

    def draw(leaf):
        fan_in = max(1, leaf.size // leaf.shape[-1])
        return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5)

    params = jax.tree.map(draw, shapes["params"])
    stats = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.3, 1.5, leaf.shape)), shapes.get("batch_stats", {}))
    return params, {"batch_stats": stats} if stats else {}


def batches(num_batches: int = 2, size: int = 4, seed: int = 0, image: int = SIZE, channels: int = 2) -> Batch:
    """Random images with leading axes [num_batches, size]."""
    rng = np.random.default_rng(seed + 100)
    images = rng.uniform(size=(num_batches, size, image, image, channels))
    keys = jax.random.split(jax.random.key(seed), (num_batches, size))
    index = np.arange(num_batches * size).reshape(num_batches, size)
    return Batch(jnp.asarray(images), keys, jnp.asarray(index), jnp.asarray(index % 3))


def objective(loss: Loss, module: nn.Module) -> Objective:
    target = network(module) if loss.compares_with_target else None
    return Objective(network(module), Noisy(copies=loss.views), loss, target)


def problem(
    loss: Loss, curvature: Curvature = "ggn", module: nn.Module | None = None, samples: int = 3, seed: int = 0, **data
) -> Problem:
    module = ConvNet() if module is None else module
    size, channels = data.get("image", SIZE), data.get("channels", 2)
    params, frozen = variables(module, seed, size, channels)
    if loss.compares_with_target and not loss.target_is_online:
        target, target_frozen = variables(module, seed + 5, size, channels)
        frozen = {**frozen, "target": {"params": target, **target_frozen}}
    return Problem(params, frozen, batches(seed=seed, **data), objective(loss, module), curvature, samples)


def first_batch(problem: Problem) -> Batch:
    return jax.tree.map(lambda leaf: leaf[0], problem.batches)
