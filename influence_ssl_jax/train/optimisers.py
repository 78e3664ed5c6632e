"""Define LARS and SGD with warm-up and cosine decay.

They are the optimisers of self-supervised training.
"""

import dataclasses
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from influence_ssl_jax.configuration import COUNT, POSITIVE, check_numbers
from influence_ssl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Lars:
    """SGD with momentum and limited steps per layer, as in solo-learn.

    For a weight matrix or kernel `w` with gradient `g`, weight decay `β` and learning rate `α`: `v ← m v + min(η‖w‖ /
    (α (‖g‖ + β‖w‖)), 1) (g + β w)`, `w ← w − α v`. Before momentum, a layer moves by `α` times its decayed gradient,
    but by no more than the share `η` of its own norm. Biases and norm parameters (one axis or none) have neither
    this limit nor weight decay.
    Reference: arXiv 1708.03888, equation (6); the limit is `clip_lr` of solo-learn.

    Attributes:
        learning_rate: α after warm-up.
        eta: η, the trust coefficient.
        weight_decay: β.
        momentum: m.
        warmup_epochs: Epochs in which the rate rises linearly; it then falls to 0 along a cosine.
        warmup_start: Learning rate at step 0, if there is a warm-up.
        scale_by_batch: Multiply `learning_rate` by the batch size over 256, as solo-learn does; `warmup_start` is not.

    Examples:
        The gradient is so large that the first step is the share η = 0.5 of the norm of the weights, 2.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.train import Lars
        >>> optimiser = Lars(eta=0.5, weight_decay=0.0).transformation(lambda step: 0.1)
        >>> weights = {"kernel": jnp.asarray([[2.0]])}
        >>> update, _ = optimiser.update({"kernel": jnp.asarray([[1000.0]])}, optimiser.init(weights), weights)
        >>> round(float(update["kernel"][0, 0]), 6)
        -1.0
    """

    learning_rate: float = 0.4
    eta: float = 0.02
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warmup_epochs: int = 10
    warmup_start: float = 0.003
    scale_by_batch: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers with which no step descends."""
        check_numbers(
            self,
            learning_rate=POSITIVE,
            weight_decay=(0, math.inf),
            momentum=(0, 1),
            warmup_epochs=(0, COUNT[1]),
            warmup_start=(0, math.inf),
            eta=POSITIVE,
        )

    def transformation(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Return the optimiser as a pair of pure functions of optax."""
        return lars(schedule, self.eta, self.weight_decay, self.momentum)


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD with momentum: `v ← m v + g + β w`, `w ← w − α v`.

    Biases and norm parameters (one axis or none) have no weight decay.

    Attributes:
        learning_rate: α after warm-up.
        weight_decay: β.
        momentum: m.
        warmup_epochs: Epochs in which the rate rises linearly; it then falls to 0 along a cosine.
        warmup_start: Learning rate at step 0, if there is a warm-up.
        scale_by_batch: Multiply `learning_rate` by the batch size over 256, as solo-learn does; `warmup_start` is not.

    Examples:
        Only the matrix decays: its step is −0.1 · (1 + 0.5 · 2), that of the bias is −0.1 · 1.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.train import Sgd
        >>> optimiser = Sgd(weight_decay=0.5).transformation(lambda step: 0.1)
        >>> weights = {"bias": jnp.asarray([2.0]), "kernel": jnp.asarray([[2.0]])}
        >>> gradients = {"bias": jnp.asarray([1.0]), "kernel": jnp.asarray([[1.0]])}
        >>> update, _ = optimiser.update(gradients, optimiser.init(weights), weights)
        >>> round(float(update["bias"][0]), 6), round(float(update["kernel"][0, 0]), 6)
        (-0.1, -0.2)
    """

    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    scale_by_batch: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers with which no step descends."""
        check_numbers(
            self,
            learning_rate=POSITIVE,
            weight_decay=(0, math.inf),
            momentum=(0, 1),
            warmup_epochs=(0, COUNT[1]),
            warmup_start=(0, math.inf),
        )

    def transformation(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """Return the optimiser as a pair of pure functions of optax."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.trace(self.momentum),
            optax.scale_by_learning_rate(schedule),
        )


Optimiser: TypeAlias = Lars | Sgd

REFERENCE_BATCH = 256
"""The batch size for which a rate that scales with the batch is given."""


def highest_rate(optimiser: Optimiser, batch_size: int) -> float:
    """Return the learning rate after warm-up, in batches of this size.

    Examples:
        >>> from influence_ssl_jax.train.optimisers import Lars, highest_rate
        >>> highest_rate(Lars(0.4), 64), highest_rate(Lars(0.4, scale_by_batch=True), 64)
        (0.4, 0.1)
    """
    scale = batch_size / REFERENCE_BATCH if optimiser.scale_by_batch else 1.0
    return optimiser.learning_rate * scale


def describe_rate(optimiser: Optimiser, batch_size: int) -> str:
    """Say which learning rate results from the settings and the batch.

    Examples:
        >>> from influence_ssl_jax.train.optimisers import Lars, describe_rate
        >>> describe_rate(Lars(0.4, scale_by_batch=True), 64)
        'Learning rate 0.1 in batches of 64: 0.4 × 64 / 256.'
    """
    said = f"Learning rate {highest_rate(optimiser, batch_size):.4g} in batches of {batch_size}"
    if batch_size == REFERENCE_BATCH:
        return f"{said}."
    factor = f"{batch_size} / {REFERENCE_BATCH}"
    if optimiser.scale_by_batch:
        return f"{said}: {optimiser.learning_rate:.4g} × {factor}."
    return f"{said}, not scaled by the batch (--training.optimiser.scale-by-batch multiplies it by {factor})."


def schedule(
    optimiser: Optimiser, epochs: int, steps_per_epoch: int, batch_size: int = REFERENCE_BATCH
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    It rises linearly from `warmup_start` to `highest_rate` in the epochs of warm-up, then falls along a cosine to 0 at
    the last step.

    Examples:
        >>> from influence_ssl_jax.train.optimisers import Lars, schedule
        >>> rate = schedule(Lars(0.4, warmup_epochs=1, warmup_start=0.0), epochs=3, steps_per_epoch=10)
        >>> [round(float(rate(step)), 3) for step in (0, 5, 10, 20, 30)]
        [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    peak = highest_rate(optimiser, batch_size)
    return optax.warmup_cosine_decay_schedule(
        init_value=optimiser.warmup_start if optimiser.warmup_epochs else peak,
        peak_value=peak,
        warmup_steps=optimiser.warmup_epochs * steps_per_epoch,
        decay_steps=epochs * steps_per_epoch,
    )


class LarsState(NamedTuple):
    """The number of steps, and the momentum `v`."""

    step: Int[Array, ""]
    velocity: Params


def lars(schedule: optax.Schedule, eta: float, weight_decay: float, momentum: float) -> optax.GradientTransformation:
    """Return LARS as an optax transformation.

    It differs from `optax.lars`, which multiplies the trust ratio by α instead of limiting the step.
    """

    def init(params: Params) -> LarsState:
        return LarsState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, LarsState]:
        if params is None:
            raise ValueError("LARS compares gradients with parameters: pass `params` to `update`.")
        assert isinstance(state, LarsState)
        rate = jnp.asarray(schedule(state.step))

        def limit(gradient: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
            if weight.ndim <= 1:
                return gradient
            size, slope = jnp.linalg.norm(weight.ravel()), jnp.linalg.norm(gradient.ravel())
            factor = jnp.minimum(eta * size / (slope + weight_decay * size + 1e-8) / rate, 1)
            return jnp.where((size > 0) & (slope > 0), factor * (gradient + weight_decay * weight), gradient)

        steps = jax.tree.map(limit, updates, params)
        velocity = jax.tree.map(lambda v, s: momentum * v + s, state.velocity, steps)
        return jax.tree.map(lambda v: -rate * v, velocity), LarsState(state.step + 1, velocity)

    return optax.GradientTransformation(init, update)


def _matrices(params: Params) -> Params:
    """Mark the parameters with at least two axes."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
