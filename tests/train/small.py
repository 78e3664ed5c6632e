"""Runs that compile in seconds: the real training, on one convolution with BatchNorm."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.data import Arrays, ToInput, epoch
from influence_ssl_jax.losses import Supervised
from influence_ssl_jax.nets.heads import Classifier, Predictor, Projector, SelfSupervised
from influence_ssl_jax.train.export import Trained, save
from influence_ssl_jax.train.settings import Pretrain, tiny
from influence_ssl_jax.train.state import initial

INPUT = ToInput(8, 8, 3)


class OneConvolution(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype, name="conv")(images)
        x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name="bn")(x)
        return jnp.mean(nn.relu(x).astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class Small(Pretrain):
    def module(self, dtype=None):
        projector = Classifier(10) if isinstance(self.loss, Supervised) else Projector(8, 4, dtype=dtype)
        predictor = Predictor(8, dtype) if self.loss.compares_with_target else None
        return SelfSupervised(OneConvolution(dtype), projector, predictor)

    def objective(self, dtype=None):
        whole = super().objective(dtype)
        return whole if self.loss.views == 1 else dataclasses.replace(whole, views=GaussianNoise(0.1))


def small(loss, **changes):
    """`tiny(loss)`, with one convolution for a backbone and noise for views."""
    fields = {field.name: getattr(tiny(loss), field.name) for field in dataclasses.fields(Pretrain)}
    return Small(**{**fields, "batch_size": 16, **changes})


def coloured(count, seed=0):
    """Noise images of two classes: reddish and bluish ones."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = draw.integers(0, 128, size=(count, 8, 8, 3)).astype(np.uint8)
    images[labels == 0, ..., 0] += 100
    images[labels == 1, ..., 2] += 100
    return Arrays(images, labels).open()


def a_batch(settings, count=16):
    return next(epoch(coloured(count), INPUT, settings.batch_size, settings.seed, 1)).batch


def saved(path, settings):
    """An untrained network as a file, which a command scores as it does a trained one."""
    state = initial(settings, (INPUT.height, INPUT.width, INPUT.channels))
    made = Trained(settings, (INPUT.height, INPUT.width, INPUT.channels), state.params, state.frozen)
    return save(path, made, input=describe(INPUT)).arrays
