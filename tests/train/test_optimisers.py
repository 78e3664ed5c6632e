"""LARS against its formula in numpy and against optax's; schedules at their ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.train.optimisers import Lars, Sgd, describe_rate, lars, schedule


def tree(seed, size=1.0):
    draw = np.random.default_rng(seed)
    shapes = {"conv": {"kernel": (3, 3, 2, 4)}, "bn": {"scale": (4,), "bias": (4,)}, "dense": {"kernel": (4, 2)}}
    return jax.tree.map(lambda s: jnp.asarray(size * draw.normal(size=s)), shapes, is_leaf=lambda s: type(s) is tuple)


def torch_lars(weights, gradients, rates, eta, decay, momentum):
    """solo-learn's LARS with clip_lars_lr and exclude_bias_n_norm_lars, restated for one parameter."""
    buffer = None
    for gradient, rate in zip(gradients, rates, strict=True):
        direction = gradient.copy()
        size, slope = np.linalg.norm(weights), np.linalg.norm(gradient)
        if weights.ndim != 1 and size != 0 and slope != 0:
            trust = eta * size / (slope + size * decay + 1e-8)
            direction = (direction + decay * weights) * min(trust / rate, 1)
        buffer = direction if buffer is None else momentum * buffer + direction
        weights = weights - rate * buffer
    return weights


@given(seed=st.integers(0, 1000), slope=st.sampled_from([1e-3, 1.0, 1e3]), decay=st.sampled_from([0.0, 0.1]))
def test_lars_is_its_formula(seed, slope, decay):
    rates = [0.3, 0.2, 0.05]
    transformation = lars(lambda step: jnp.asarray(rates)[step], 0.02, decay, 0.9)
    start = weights = tree(seed)
    gradients = [tree(seed + k + 1, slope) for k in range(3)]
    state = transformation.init(weights)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)

    def expected(leaf, *leaves):
        return torch_lars(np.asarray(leaf), [np.asarray(g) for g in leaves], rates, 0.02, decay, 0.9)

    by_hand = jax.tree.map(expected, start, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), weights, by_hand)


@given(seed=st.integers(0, 1000))
def test_a_limited_layer_moves_as_in_optax_at_rate_one(seed):
    """Where the cap holds, α times the limited factor is the trust ratio: optax's step at α = 1."""
    weights, gradient = tree(seed), tree(seed + 1, 100.0)
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, weights)
    theirs = optax.lars(1.0, 0.1, matrices, trust_coefficient=0.02, trust_ratio_mask=matrices, momentum=0.0)
    ours = lars(lambda step: 1.0 + 0 * step, 0.02, 0.1, 0.0)
    moved, expected = (each.update(gradient, each.init(weights), weights)[0] for each in (ours, theirs))
    for layer in ("conv", "dense"):
        step = np.linalg.norm(moved[layer]["kernel"])
        # optax divides by ‖g + βw‖, LARS by ‖g‖ + β‖w‖: the same direction, nearly the same length.
        np.testing.assert_allclose(step, np.linalg.norm(expected[layer]["kernel"]), rtol=0.1)
        np.testing.assert_allclose(
            moved[layer]["kernel"] / step,
            expected[layer]["kernel"] / np.linalg.norm(expected[layer]["kernel"]),
            rtol=1e-10,
        )
    np.testing.assert_allclose(moved["bn"]["scale"], expected["bn"]["scale"])


def test_no_layer_moves_by_more_than_its_share():
    weights, gradient = tree(0), tree(1, 1e6)
    transformation = lars(lambda step: 0.5 + 0 * step, 0.02, 0.0, 0.0)
    updates, _ = transformation.update(gradient, transformation.init(weights), weights)
    for layer in ("conv", "dense"):
        ratio = np.linalg.norm(updates[layer]["kernel"]) / np.linalg.norm(weights[layer]["kernel"])
        np.testing.assert_allclose(ratio, 0.02, rtol=1e-6)


def test_zero_weights_and_zero_gradients_stay_finite():
    zeros = jax.tree.map(jnp.zeros_like, tree(0))
    for weights, gradient in ((zeros, tree(1)), (tree(0), zeros)):
        transformation = Lars().transformation(lambda step: 0.0 * step)
        updates, _ = transformation.update(gradient, transformation.init(weights), weights)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))
    with pytest.raises(ValueError, match="pass `params`"):
        Lars().transformation(lambda step: 0.1 * step).update(zeros, transformation.init(zeros))


def test_sgd_decays_matrices_only():
    weights, zeros = tree(0), jax.tree.map(jnp.zeros_like, tree(0))
    transformation = Sgd(weight_decay=0.5, momentum=0.0).transformation(lambda step: 0.1 + 0 * step)
    updates, _ = transformation.update(zeros, transformation.init(weights), weights)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05 * weights["dense"]["kernel"], rtol=1e-6)
    assert not np.any(updates["bn"]["scale"])


@pytest.mark.parametrize("optimiser", [Lars(0.4, warmup_epochs=2), Sgd(0.4, warmup_epochs=2)])
def test_the_rate_warms_up_and_falls_along_a_cosine(optimiser):
    rate = schedule(dataclasses.replace(optimiser, warmup_start=0.003), epochs=10, steps_per_epoch=5)
    np.testing.assert_allclose(rate(0), 0.003)
    np.testing.assert_allclose(rate(5), (0.003 + 0.4) / 2)
    np.testing.assert_allclose(rate(10), 0.4)
    np.testing.assert_allclose(rate(30), 0.2)
    np.testing.assert_allclose(rate(50), 0, atol=1e-9)
    without = schedule(dataclasses.replace(optimiser, warmup_epochs=0), epochs=10, steps_per_epoch=5)
    np.testing.assert_allclose(without(0), 0.4)
    scaled = schedule(dataclasses.replace(optimiser, warmup_start=0.003, scale_by_batch=True), 10, 5, batch_size=64)
    np.testing.assert_allclose([scaled(0), scaled(10), scaled(30)], [0.003, 0.1, 0.05])


def test_the_rate_that_results_is_said_with_its_reason():
    assert describe_rate(Lars(0.4), 256) == "Learning rate 0.4 in batches of 256."
    assert describe_rate(Lars(0.4, scale_by_batch=True), 512) == "Learning rate 0.8 in batches of 512: 0.4 × 512 / 256."
    unscaled = describe_rate(Sgd(0.4), 64)
    assert unscaled.startswith("Learning rate 0.4 in batches of 64, not scaled by the batch (--training.optimiser.")
