"""Values: against plain loops in float64, and against a second opinion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.losses import (
    BYOL,
    BarlowTwins,
    CosineDistance,
    Embeddings,
    SimCLR,
    SimSiam,
    SquaredEuclid,
    Supervised,
    VICReg,
)
from tests.losses import reference
from tests.losses.cases import draw, value

seeds = st.integers(0, 2**31)
sizes = st.sampled_from([(2, 1), (2, 3), (5, 4)])
BIG = (16, 8)


@given(seeds, sizes, st.sampled_from([0.1, 0.5, 2.0]))
def test_ntxent_is_the_loop(seed, size, temperature):
    first, second = draw(seed, 2, *size)
    ours = value(SimCLR(temperature), Embeddings(jnp.asarray([first, second])))
    np.testing.assert_allclose(ours, reference.ntxent(first, second, temperature), rtol=1e-12, atol=1e-14)


@given(seeds, st.sampled_from([0.1, 0.5, 2.0]))
def test_ntxent_is_optax(seed, temperature):
    views = jnp.asarray(draw(seed, 2, *BIG))
    rows, labels = np.asarray(views).reshape(-1, BIG[1]), np.tile(np.arange(BIG[0]), 2)
    theirs = jax.jit(optax.losses.ntxent)(rows, labels, temperature)
    np.testing.assert_allclose(value(SimCLR(temperature), Embeddings(views)), theirs, rtol=1e-10)


def test_ntxent_puts_the_positive_first_and_leaves_self_out():
    views = draw(0, 2, 3, 4)
    units = (views / np.linalg.norm(views, axis=-1, keepdims=True)).reshape(6, 4)
    outputs = SimCLR(1.0).outputs(Embeddings(jnp.asarray(views)))
    for i in range(6):
        np.testing.assert_allclose(outputs[i, 0], units[i] @ units[(i + 3) % 6], atol=1e-14)
        others = [units[i] @ units[k] for k in range(6) if k != i]
        np.testing.assert_allclose(np.sort(outputs[i]), np.sort(others), atol=1e-14)


@given(seeds, sizes)
def test_byol_is_the_loop(seed, size):
    online, target = draw(seed, 2, 2, *size)
    ours = value(BYOL(), Embeddings(jnp.asarray(online), jnp.asarray(target)))
    np.testing.assert_allclose(ours, reference.byol(online, target), rtol=1e-12, atol=1e-14)


@given(seeds)
def test_byol_is_two_crossed_optax_cosine_distances(seed):
    online, target = draw(seed, 2, 2, *BIG)
    crossed = np.asarray(jax.jit(optax.losses.cosine_distance)(online, target[::-1]))
    ours = value(BYOL(), Embeddings(jnp.asarray(online), jnp.asarray(target)))
    np.testing.assert_allclose(ours, 2 * crossed.mean(axis=1).sum(), rtol=1e-12)


@pytest.mark.parametrize("loss", [BYOL(), SimSiam()])
def test_the_target_is_not_differentiated(loss):
    online, target = map(jnp.asarray, draw(0, 2, 2, 3, 4))
    assert not jnp.any(jax.grad(lambda t: loss(Embeddings(online, t)))(target))


@given(seeds, sizes)
def test_simsiam_is_the_loop(seed, size):
    predictions, projections = draw(seed, 2, 2, *size)
    ours = value(SimSiam(), Embeddings(jnp.asarray(predictions), jnp.asarray(projections)))
    np.testing.assert_allclose(ours, reference.simsiam(predictions, projections), rtol=1e-12, atol=1e-14)


@given(seeds, st.sampled_from([(2, 1), (3, 2), (5, 4)]), st.sampled_from([0.3, 1.0]))
def test_vicreg_is_the_loop(seed, size, margin):
    """Deviations on both sides of the margin."""
    first, second = draw(seed, 2, *size)
    weights = (25.0, 20.0, 2.0, margin, 1e-4)
    ours = value(VICReg(*weights), Embeddings(jnp.asarray([first, second])))
    np.testing.assert_allclose(ours, reference.vicreg(first, second, *weights), rtol=1e-11, atol=1e-14)


@given(seeds)
def test_vicreg_covariances_are_numpys(seed):
    first, second = draw(seed, 2, *BIG)
    outputs = np.asarray(VICReg(epsilon=1e-4).outputs(Embeddings(jnp.asarray([first, second]))))
    np.testing.assert_array_equal(outputs[: BIG[0]], first - second)
    for view, ours in zip((first, second), outputs[BIG[0] :].reshape(2, BIG[1], BIG[1]), strict=True):
        theirs = np.cov(view.T)
        np.fill_diagonal(theirs, np.sqrt(view.var(axis=0, ddof=1) + 1e-4))
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_vicreg_defaults_are_the_published_weights():
    first, second = draw(0, 2, 5, 4)
    ours = value(VICReg(), Embeddings(jnp.asarray([first, second])))
    np.testing.assert_allclose(ours, reference.vicreg(first, second, 25.0, 25.0, 1.0, 1.0, 1e-4), rtol=1e-12)


@given(seeds, st.sampled_from([(3, 1), (5, 4)]))
def test_barlow_twins_is_the_loop(seed, size):
    first, second = draw(seed, 2, *size)
    ours = value(BarlowTwins(0.02, 0.3), Embeddings(jnp.asarray([first, second])))
    np.testing.assert_allclose(ours, reference.barlow_twins(first, second, 0.02, 0.3), rtol=1e-11, atol=1e-14)


@given(seeds)
def test_barlow_twins_correlations_are_numpys(seed):
    first, second = draw(seed, 2, *BIG)
    theirs = np.corrcoef(first.T, second.T)[: BIG[1], BIG[1] :]
    np.testing.assert_allclose(BarlowTwins().outputs(Embeddings(jnp.asarray([first, second]))), theirs, atol=1e-13)


@given(seeds, sizes)
def test_supervised_is_the_loop_and_optax(seed, size):
    logits, labels = draw(seed, *size), np.arange(size[0]) % size[1]
    ours = value(Supervised(), Embeddings(jnp.asarray(logits)[None], label=jnp.asarray(labels)))
    np.testing.assert_allclose(ours, reference.cross_entropy(logits, labels), rtol=1e-12, atol=1e-14)
    entropies = jax.jit(optax.losses.softmax_cross_entropy_with_integer_labels)(logits, labels)
    theirs = np.asarray(entropies).mean()
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@jax.jit
def one_by_one(embeddings):
    """Every example's cosine distance by optax and by the measurement."""
    measurement = CosineDistance()
    return optax.losses.cosine_distance(*embeddings.online), measurement.values(measurement.residuals(embeddings))


@given(seeds, sizes)
def test_measurements_are_the_loops(seed, size):
    views = draw(seed, 2, *size)
    embeddings = Embeddings(jnp.asarray(views))
    np.testing.assert_allclose(
        value(CosineDistance(), embeddings), reference.cosine_distance(*views), rtol=1e-11, atol=1e-14
    )
    np.testing.assert_allclose(value(SquaredEuclid(), embeddings), reference.squared_euclid(*views), rtol=1e-12)
    theirs, ours = one_by_one(embeddings)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)


def test_cosine_distance_keeps_digits_that_one_minus_cosine_loses():
    """For a turn by the small angle φ the distance is 1 − cos φ = 2 sin²(φ/2), far below rounding of 1."""
    angle = 1e-9
    views = jnp.asarray([[[1.0, 0.0]], [[np.cos(angle), np.sin(angle)]]])
    np.testing.assert_allclose(CosineDistance()(Embeddings(views)), 2 * np.sin(angle / 2) ** 2, rtol=1e-12)


@pytest.mark.parametrize("measurement", [CosineDistance, SquaredEuclid])
def test_gradient_paths_add_up_and_stop(measurement):
    views = jnp.asarray(draw(0, 2, 3, 4))

    def gradient(path):
        return jax.jit(jax.grad(lambda z: measurement(path)(Embeddings(z))))(views)

    np.testing.assert_allclose(gradient("clean") + gradient("perturbed"), gradient("both"), atol=1e-14)
    assert not jnp.any(gradient("clean")[1])
    assert not jnp.any(gradient("perturbed")[0])
