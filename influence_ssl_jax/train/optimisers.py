"""Optimisers of self-supervised training: LARS and SGD, both with warm-up and cosine decay."""

import dataclasses
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from influence_ssl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Lars:
    """SGD with momentum whose step is limited per layer, as solo-learn runs it.

    For a weight matrix or kernel `w` with gradient `g`, weight decay `β` and learning rate `α`:
    `v ← m v + min(η‖w‖ / (α (‖g‖ + β‖w‖)), 1) (g + β w)`, `w ← w − α v`. So a layer moves by `α` times its gradient,
    but by no more than the share `η` of its own norm. Biases and norm parameters (one axis or none) are excluded from
    the limit and from weight decay.
    Reference: arXiv 1708.03888, equation (6); the cap is `clip_lr` of solo-learn.

    Attributes:
        learning_rate: α after warm-up.
        eta: η, the trust coefficient.
        weight_decay: β.
        momentum: m.
        warmup_epochs: Epochs over which the rate rises linearly; it then falls to 0 along a cosine.
        warmup_start: Rate at step 0 where there is a warm-up.
    """

    learning_rate: float = 0.4
    eta: float = 0.02
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_epochs: int = 10
    warmup_start: float = 0.003

    def transformation(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The optimiser as a pair of pure functions."""
        return lars(schedule, self.eta, self.weight_decay, self.momentum)


@dataclasses.dataclass(frozen=True)
class Sgd:
    """`v ← m v + g + β w`, `w ← w − α v`; biases and norm parameters are excluded from weight decay.

    Attributes:
        learning_rate: α after warm-up.
        weight_decay: β.
        momentum: m.
        warmup_epochs: Epochs over which the rate rises linearly; it then falls to 0 along a cosine.
        warmup_start: Rate at step 0 where there is a warm-up.
    """

    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_epochs: int = 0
    warmup_start: float = 0.0

    def transformation(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The optimiser as a pair of pure functions."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.trace(self.momentum),
            optax.scale_by_learning_rate(schedule),
        )


Optimiser: TypeAlias = Lars | Sgd


def schedule(optimiser: Optimiser, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up from `warmup_start` to `learning_rate`, then a cosine to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=optimiser.warmup_start if optimiser.warmup_epochs else optimiser.learning_rate,
        peak_value=optimiser.learning_rate,
        warmup_steps=optimiser.warmup_epochs * steps_per_epoch,
        decay_steps=epochs * steps_per_epoch,
    )


class LarsState(NamedTuple):
    """Steps taken, and the momentum buffer `v`."""

    step: Int[Array, ""]
    velocity: Params


def lars(schedule: optax.Schedule, eta: float, weight_decay: float, momentum: float) -> optax.GradientTransformation:
    """`Lars` as an optax transformation. optax's own multiplies the trust ratio by α where this one caps it."""

    def init(params: Params) -> LarsState:
        return LarsState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, LarsState]:
        if params is None:
            raise ValueError("LARS compares gradients with parameters: pass `params` to `update`.")
        assert isinstance(state, LarsState)
        rate = jnp.asarray(schedule(state.step))

        def limited(gradient: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
            if weight.ndim <= 1:
                return gradient
            size, slope = jnp.linalg.norm(weight.ravel()), jnp.linalg.norm(gradient.ravel())
            factor = jnp.minimum(eta * size / (slope + weight_decay * size + 1e-8) / rate, 1)
            return jnp.where((size > 0) & (slope > 0), factor * (gradient + weight_decay * weight), gradient)

        steps = jax.tree.map(limited, updates, params)
        velocity = jax.tree.map(lambda v, s: momentum * v + s, state.velocity, steps)
        return jax.tree.map(lambda v: -rate * v, velocity), LarsState(state.step + 1, velocity)

    return optax.GradientTransformation(init, update)


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
