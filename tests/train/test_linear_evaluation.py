"""The linear evaluation against SGD in numpy, and top-k by hand."""

import dataclasses

import numpy as np
import pytest

from influence_ssl_jax import randomness
from influence_ssl_jax.errors import DivergenceError
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.train.linear_evaluation import LinearClassifier, LinearEvaluation, fit_linear
from influence_ssl_jax.train.probes import Labelled

SETTINGS = LinearEvaluation(2.0, weight_decay=0.03, epochs=4, batch_size=8, decay_epochs=(2, 3), seed=5)


def drawn(seed=0, count=27):
    draw = np.random.default_rng(seed)
    return Labelled(draw.normal(size=(count, 5)), np.array([3, 7, 8])[np.arange(count) % 3])


def by_hand(known, settings):
    """torch.optim.SGD with MultiStepLR, restated: v ← m v + g + β w, w ← w − α v."""
    classes = np.unique(known.labels)
    targets = (known.labels[:, None] == classes).astype(float)
    weights = np.zeros((known.embeddings.shape[1] + 1, len(classes)))  # the last row is the bias
    inputs = np.concatenate([known.embeddings, np.ones((len(targets), 1))], axis=1)
    velocity, losses = np.zeros_like(weights), []
    size = min(settings.batch_size, len(targets))
    for epoch in range(settings.epochs):
        fallen = sum(epoch >= each for each in settings.decay_epochs)
        rate = settings.learning_rate * size / 256 * settings.decay**fallen
        order = randomness.generator(settings.seed, Stream.LINEAR_ORDER, epoch).permutation(len(targets))
        losses = []
        for start in range(0, len(targets) - size + 1, size):
            rows = order[start : start + size]
            logits = inputs[rows] @ weights
            likelihood = np.exp(logits - logits.max(axis=1, keepdims=True))
            likelihood /= likelihood.sum(axis=1, keepdims=True)
            losses.append(-np.log((likelihood * targets[rows]).sum(axis=1)).mean())
            gradient = inputs[rows].T @ (likelihood - targets[rows]) / size + settings.weight_decay * weights
            velocity = settings.momentum * velocity + gradient
            weights = weights - rate * velocity
    return weights, np.mean(losses)


@pytest.mark.parametrize("batch", [8, 64])
def test_the_classifier_is_sgd_with_a_rate_that_falls_in_steps(batch):
    known, settings = drawn(), dataclasses.replace(SETTINGS, batch_size=batch)
    classifier, (weights, loss) = fit_linear(known, settings), by_hand(known, settings)
    np.testing.assert_allclose(classifier.kernel, weights[:-1], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(classifier.bias, weights[-1], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(classifier.loss, loss, rtol=1e-10)
    assert classifier.classes.tolist() == [3, 7, 8]
    assert np.abs(classifier.kernel).max() > 1e-3


def test_the_likeliest_classes_are_counted():
    kernel, classes = np.eye(7), np.arange(7) * 10
    asked = Labelled(
        np.tile(np.arange(7.0), (8, 1)), np.array([60, 50, 40, 30, 20, 10, 0, 5])
    )  # 60 is likeliest; 5 unknown
    classifier = LinearClassifier(kernel, np.zeros(7), classes, 0.0)
    assert [classifier.top_accuracy(asked, most) for most in (1, 5, 7)] == [1 / 8, 5 / 8, 7 / 8]
    lifted = LinearClassifier(kernel, np.array([9.0, 0, 0, 0, 0, 0, 0]), classes, 0.0)
    assert lifted.top_accuracy(Labelled(asked.embeddings[:1], np.array([0])), 1) == 1


def test_a_rate_that_diverges_is_named_and_numbers_of_nothing_refused():
    with pytest.raises(DivergenceError, match="diverged at the learning rate 1e\\+300; take a lower one"):
        fit_linear(drawn(), dataclasses.replace(SETTINGS, learning_rate=1e300))
    for wrong in ({"epochs": 0}, {"learning_rate": 0.0}, {"decay_epochs": (0,)}, {"momentum": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LinearEvaluation(**wrong)
    with pytest.raises(ValueError, match="needs labelled examples, got none"):
        fit_linear(Labelled(np.zeros((0, 2)), np.zeros(0, int)), SETTINGS)
