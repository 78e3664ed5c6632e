"""Zero, constant, missing and impossible input: finite derivatives, or an error that says what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from influence_ssl_jax.losses.loss import unit
from tests.losses.cases import BATCH, WIDTH, draw, embeddings, name

DEFINED_AT_ZERO = (SimCLR(0.5), BYOL(), BarlowTwins(), SimSiam(), VICReg(), CosineDistance())


@functools.partial(jax.jit, static_argnums=0)
def derivatives(loss, given):
    """Value, gradient and a Hessian–vector product with respect to the online embeddings."""

    def value(online):
        return loss(given._replace(online=online))

    (value, gradient), (_, product) = jax.jvp(
        jax.value_and_grad(value), (given.online,), (jnp.ones_like(given.online),)
    )
    return value, gradient, product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("loss", DEFINED_AT_ZERO, ids=name)
@pytest.mark.parametrize("zeroed", [np.s_[0, 1], np.s_[:, 1], np.s_[...], np.s_[..., 1]])
def test_zero_embeddings_and_constant_features_have_finite_derivatives(loss, zeroed, dtype):
    given = embeddings(loss)
    online, target = (np.array(side, dtype) for side in (given.online, given.target))
    online[zeroed] = target[zeroed] = 0
    for derivative in derivatives(loss, Embeddings(online, target)):
        assert np.isfinite(derivative).all()


def test_an_example_without_direction_counts_nothing_and_is_flagged():
    measurement = CosineDistance()
    given = embeddings(measurement)
    zeroed = Embeddings(given.online.at[1, 2].set(0))
    values = measurement.values(measurement.residuals(zeroed))
    np.testing.assert_array_equal(measurement.degenerate(zeroed), [False, False, True, False])
    assert values[2] == 0
    np.testing.assert_array_equal(np.delete(values, 2), np.delete(measurement.values(measurement.residuals(given)), 2))
    gradient = jax.grad(lambda z: measurement(Embeddings(z)))(zeroed.online)
    assert not jnp.any(gradient[:, 2])
    assert not jnp.any(SquaredEuclid().degenerate(zeroed))


def test_a_non_finite_embedding_is_not_taken_for_zero():
    measurement = CosineDistance()
    given = embeddings(measurement)
    for bad in (jnp.nan, jnp.inf):
        spoiled = Embeddings(given.online.at[0, 1].set(bad))
        values = measurement.values(measurement.residuals(spoiled))
        np.testing.assert_array_equal(jnp.isnan(values), [False, True, False, False])
        assert not jnp.any(measurement.degenerate(spoiled))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_float32_directions_survive_any_scale(size):
    vectors = draw(0, 5, WIDTH)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(jnp.asarray(size * vectors, jnp.float32)), expected, rtol=1e-5, atol=1e-6)


def test_barlow_twins_takes_a_constant_feature_far_from_zero_for_constant():
    first, second = draw(0, 2, 256, 2)
    first[:, 0] = 0.1
    matrix = BarlowTwins().outputs(Embeddings(jnp.asarray([first, second], jnp.float32)))
    np.testing.assert_array_equal(matrix[0], 0)


@pytest.mark.parametrize("label", [-1, WIDTH])
def test_a_label_that_is_no_class_gives_nan(label):
    given = embeddings(Supervised())
    margins = Supervised().outputs(given._replace(label=given.label.at[1].set(label)))
    np.testing.assert_array_equal(jnp.isnan(margins).any(axis=1), np.arange(BATCH) == 1)


@pytest.mark.parametrize(
    ("loss", "given", "advice"),
    [
        (SimCLR(), Embeddings(jnp.ones((3, 4, 2))), "draw two"),
        (CosineDistance(), Embeddings(jnp.ones((1, 4, 2))), "draw two"),
        (SimCLR(), Embeddings(jnp.ones((2, 1, 2))), "at least 2"),
        (BarlowTwins(), Embeddings(jnp.ones((2, 1, 2))), "at least 2"),
        (VICReg(), Embeddings(jnp.ones((2, 1, 2))), "at least 2"),
        (VICReg(), Embeddings(jnp.ones((3, 4, 2))), "draw two"),
        (SimSiam(), Embeddings(jnp.ones((2, 4, 2))), "SimSiam compares .* target"),
        (BYOL(), Embeddings(jnp.ones((2, 4, 2))), "BYOL compares .* target"),
        (BYOL(), Embeddings(jnp.ones((2, 4, 2)), jnp.ones((2, 4, 3))), "output width"),
        (Supervised(), Embeddings(jnp.ones((1, 4, 2))), "labels"),
        (Supervised(), Embeddings(jnp.ones((2, 4, 2)), label=jnp.zeros(4, int)), "one view"),
    ],
)
def test_errors_say_what_to_do(loss, given, advice):
    with pytest.raises(ValueError, match=advice):
        loss(given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimCLR(0.0),
        lambda: BarlowTwins(-1.0),
        lambda: BarlowTwins(scale=0.0),
        lambda: VICReg(variance=-1.0),
        lambda: VICReg(covariance=float("nan")),
        lambda: VICReg(epsilon=0.0),
        lambda: VICReg(margin=-1.0),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(ValueError, match="got"):
        make()
