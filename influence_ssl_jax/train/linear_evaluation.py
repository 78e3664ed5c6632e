"""Train a linear classifier on fixed representations, as the field evaluates encoders."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from influence_ssl_jax import randomness
from influence_ssl_jax.configuration import COUNT, POSITIVE, check_numbers
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.train.optimisers import REFERENCE_BATCH
from influence_ssl_jax.train.probes import Labelled
from influence_ssl_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class LinearEvaluation:
    """SGD with momentum on the cross-entropy of `x W + b`.

    Its rate falls in steps. The settings are those of solo-learn's scripts (scripts/linear), whose rate depends on the
    method: 1.0 for SimCLR, 0.3 for BYOL, 0.1 for Barlow Twins. There each epoch sees other crops of the training images;
    here every epoch has the representations of the images themselves. `W` and `b` start at zero.

    Attributes:
        learning_rate: Rate of the first epochs, for batches of 256; it is multiplied by the batch size over 256.
        momentum: Share of the last step that is added to the next one.
        weight_decay: Multiple of `W` and `b` that is added to the gradient.
        epochs: Number of passes over the training images.
        batch_size: Number of images of a step.
        decay_epochs: Epochs after which the rate is multiplied by `decay`.
        decay: Factor of the rate at each of them.
        seed: Seed of the order of the training images.
    """

    learning_rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int = 256
    decay_epochs: tuple[int, ...] = (60, 80)
    decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers with which no step descends."""
        check_numbers(
            self,
            learning_rate=POSITIVE,
            momentum=(0, 1),
            weight_decay=(0, math.inf),
            epochs=COUNT,
            batch_size=COUNT,
            decay_epochs=COUNT,
            decay=(0, 1),
            seed=(0, math.inf),
        )

    def schedule(self, steps_per_epoch: int, batch_size: int) -> optax.Schedule:
        """Return the learning rate as a function of the step.

        Examples:
            >>> from influence_ssl_jax.train.linear_evaluation import LinearEvaluation
            >>> rate = LinearEvaluation(1.0).schedule(steps_per_epoch=10, batch_size=128)
            >>> [round(float(rate(10 * epoch)), 4) for epoch in (0, 59, 60, 80)]
            [0.5, 0.5, 0.05, 0.005]
        """
        falls = dict.fromkeys((epoch * steps_per_epoch for epoch in self.decay_epochs), self.decay)
        return optax.piecewise_constant_schedule(self.learning_rate * batch_size / REFERENCE_BATCH, falls)


class LinearClassifier(NamedTuple):
    """A linear classifier.

    Attributes:
        kernel: W, one column for each class.
        bias: b.
        classes: The number of each column's class.
        loss: Mean cross-entropy over the last epoch of training.
    """

    kernel: Float[np.ndarray, "width classes"]
    bias: Float[np.ndarray, " classes"]
    classes: Int[np.ndarray, " classes"]
    loss: float

    def top_accuracy(self, asked: Labelled, most: int) -> float:
        """Measure how often the class is among the `most` likeliest ones.

        The result is a share of the examples.

        A class without training examples is never among them.

        Examples:
            >>> import numpy as np
            >>> from influence_ssl_jax.train.linear_evaluation import LinearClassifier
            >>> from influence_ssl_jax.train.probes import Labelled
            >>> classifier = LinearClassifier(np.eye(3), np.zeros(3), np.asarray([4, 5, 9]), 0.0)
            >>> asked = Labelled(np.asarray([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), np.asarray([4, 5]))
            >>> classifier.top_accuracy(asked, 1), classifier.top_accuracy(asked, 2)
            (0.5, 1.0)
        """
        logits = asked.embeddings @ self.kernel + self.bias
        likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :most]
        return float(np.mean((self.classes[likeliest] == asked.labels[:, None]).any(axis=1)))


def fit_linear(known: Labelled, settings: LinearEvaluation) -> LinearClassifier:
    """Train a linear classifier on representations.

    An epoch passes through a random order in whole batches; the rest of the order is left out. With fewer examples than
    a batch, the batch has all of them.

    Args:
        known: Representations and their classes.
        settings: Settings of the training.

    Raises:
        ValueError: If there are no examples.
        DivergenceError: If the loss becomes infinite.
    """
    if not len(known.labels):
        raise ValueError("A linear classifier needs labelled examples, got none.")
    classes, numbered = np.unique(known.labels, return_inverse=True)
    size = min(settings.batch_size, len(numbered))
    steps = len(numbered) // size
    optimiser = optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(settings.schedule(steps, size), settings.momentum),
    )
    embeddings, labels = jnp.asarray(known.embeddings), jnp.asarray(numbered, jnp.int32)
    width = embeddings.shape[1]
    head = {
        "kernel": jnp.zeros((width, len(classes)), embeddings.dtype),
        "bias": jnp.zeros(len(classes), embeddings.dtype),
    }
    state, loss = optimiser.init(head), jnp.zeros(())
    run = jax.jit(functools.partial(_epoch, optimiser))
    for epoch in range(settings.epochs):
        order = randomness.generator(settings.seed, Stream.LINEAR_ORDER, epoch).permutation(len(numbered))
        head, state, loss = run(head, state, embeddings, labels, order[: steps * size].reshape(steps, size))
    if not math.isfinite(float(loss)):
        raise DivergenceError(
            f"The linear classifier diverged at the learning rate {settings.learning_rate:g}; take a lower one "
            "(--linear.learning-rate)."
        )
    return LinearClassifier(np.asarray(head["kernel"]), np.asarray(head["bias"]), classes, float(loss))


def _epoch(
    optimiser: optax.GradientTransformation,
    head: PyTree,
    state: PyTree,
    embeddings: Float[Array, "count width"],
    labels: Int[Array, " count"],
    order: Int[Array, "steps batch"],
) -> tuple[PyTree, PyTree, Float[Array, ""]]:
    """Train one epoch; return head, state of the optimiser, and mean loss."""

    def loss(head: PyTree, chosen: Int[Array, " batch"]) -> Float[Array, ""]:
        logits = embeddings[chosen] @ head["kernel"] + head["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    def step(carried: tuple[PyTree, PyTree], chosen: Int[Array, " batch"]) -> tuple[tuple[PyTree, PyTree], Array]:
        head, state = carried
        value, gradient = jax.value_and_grad(loss)(head, chosen)
        update, state = optimiser.update(gradient, state, head)
        return (optax.apply_updates(head, update), state), value

    (head, state), losses = jax.lax.scan(step, (head, state), order)
    return head, state, losses.mean()
