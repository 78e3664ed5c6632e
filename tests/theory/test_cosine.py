import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.theory import cosine, gauss_newton
from tests.theory.cases import compiled, decades, generators

cosine, gauss_newton = map(compiled, (cosine, gauss_newton))

DIMENSIONS = st.sampled_from((1, 2, 6))


@given(generators, DIMENSIONS, decades(-3, 3), decades(-3, 1))
def test_exact_form_is_the_angle(generator, size, length, eps):
    """The angle by arctan2 of the two sides, which keeps its digits where arccos loses them."""
    output, move = generator.normal(size=size) * length, generator.normal(size=size) * length
    perturbed = output + eps * move
    along = output @ perturbed / np.linalg.norm(output)
    across = np.linalg.norm(eps * (move - output * (move @ output) / (output @ output)))
    expected = 2 * np.sin(np.arctan2(across, along) / 2) ** 2
    rounding = (1e-15 * max(1, np.linalg.norm(output) / np.linalg.norm(perturbed))) ** 2
    distance = cosine.moved_distance(jnp.asarray(output), jnp.asarray(move), eps)
    chord = cosine.distance(jnp.asarray(output), jnp.asarray(perturbed))
    np.testing.assert_allclose(distance, expected, rtol=1e-9, atol=100 * rounding)
    np.testing.assert_allclose(chord, expected, rtol=1e-9, atol=1e4 * rounding + 1e-11 * np.sqrt(expected))


@given(generators, decades(-3, 0))
def test_moves_along_and_across(generator, eps):
    output = generator.normal(size=3)
    across = np.cross(output, generator.normal(size=3))
    assert cosine.moved_distance(jnp.asarray(output), jnp.asarray(2 * output), eps) == pytest.approx(0, abs=1e-25)
    tangent = (eps * np.linalg.norm(across) / np.linalg.norm(output)) ** 2
    distance = cosine.moved_distance(jnp.asarray(output), jnp.asarray(across), eps)
    low, high = cosine.expansion_bounds(tangent)
    assert low * (1 - 1e-9) <= distance * (1 + 1e-9)
    assert distance <= high * (1 + 1e-9)
    leading = cosine.leading(jnp.asarray(output), jnp.asarray(across), eps)
    np.testing.assert_allclose(leading, tangent / 2, rtol=1e-10)
    np.testing.assert_allclose(
        cosine.stated_leading(jnp.asarray(output), jnp.asarray(across), eps), leading, rtol=1e-10
    )


def test_one_output_is_zero_or_two():
    for perturbed, expected in ((3.0, 0.0), (-0.1, 2.0)):
        assert cosine.distance(jnp.ones(1), jnp.asarray([perturbed])) == expected
        assert cosine.moved_distance(jnp.ones(1), jnp.asarray([perturbed - 1]), 1.0) == expected
    assert cosine.moved_distance(jnp.ones(2), -jnp.ones(2), 1.0) != 2


def test_float32_half_chord_keeps_its_digits():
    angle = 7e-5
    output = jnp.asarray([0.6, 0.8], jnp.float32)
    perturbed = jnp.asarray([0.6 * np.cos(angle) - 0.8 * np.sin(angle), 0.8 * np.cos(angle) + 0.6 * np.sin(angle)])
    perturbed = perturbed.astype(jnp.float32)
    np.testing.assert_allclose(cosine.distance(output, perturbed), angle**2 / 2, rtol=5e-3)
    naive = 1 - output @ perturbed / (jnp.linalg.norm(output) * jnp.linalg.norm(perturbed))
    assert abs(naive / (angle**2 / 2) - 1) > 0.5


@given(generators, decades(-2, 0))
def test_gradient_along_any_line_and_its_size(generator, size):
    """The directional derivative by a complex step, which has no cancellation."""
    weight, x, step = generator.normal(size=(2, 3)), generator.normal(size=3), generator.normal(size=(2, 3))
    perturbed = x + size * generator.normal(size=3)

    def loss(weight, held=None):
        u, v = weight @ x, weight @ perturbed if held is None else held
        return 1 - u @ v / np.sqrt((u @ u) * (v @ v))

    arrays = jnp.asarray(weight), jnp.asarray(x), jnp.asarray(perturbed)
    full, stopped = cosine.gradient(*arrays), cosine.stop_gradient(*arrays)
    scale = np.linalg.norm(x) * np.linalg.norm(step) / np.linalg.norm(weight @ x)
    expected = np.imag(loss(weight + 1e-30j * step)) * 1e30
    np.testing.assert_allclose(np.sum(full * step), expected, atol=1e-11 * scale)
    expected = np.imag(loss(weight + 1e-30j * step, weight @ perturbed)) * 1e30
    np.testing.assert_allclose(np.sum(stopped * step), expected, atol=1e-11 * scale)
    np.testing.assert_allclose(cosine.squared_norm(*arrays), np.sum(full**2), atol=1e-12 * scale**2)
    np.testing.assert_allclose(np.sum(full * weight), 0, atol=1e-12 * np.linalg.norm(weight) * scale)


def test_opposite_outputs_have_no_gauss_newton_score():
    """r is along û, which no direction of J reaches: the limit is 0, not 2l = 4."""
    weight, x = jnp.asarray([[1.0, 0.2], [0.0, 1.0]]), jnp.asarray([1.0, 0.5])
    residual = gauss_newton.cosine_residual(weight @ x, -(weight @ x))
    direction = weight @ x / jnp.linalg.norm(weight @ x)
    across = jnp.eye(2) - jnp.outer(direction, direction)
    jacobian = jnp.kron(across, x[None]) * 2 / jnp.linalg.norm(weight @ x)
    assert residual @ residual == pytest.approx(4)
    assert gauss_newton.influence_limit(residual, jacobian) == pytest.approx(0, abs=1e-20)
