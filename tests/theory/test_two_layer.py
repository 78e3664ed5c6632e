import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.theory import gauss_newton, homogeneous, two_layer
from tests.theory.cases import compiled, decades, generators, quadratic

two_layer = compiled(two_layer)

SIZES = st.sampled_from(((1, 1, 1), (2, 3, 4), (3, 1, 6)))


def layers(generator, sizes, scale=1.0):
    outputs, hidden, inputs = sizes
    return (
        generator.normal(size=(hidden, inputs)) * scale,
        generator.normal(size=(outputs, hidden)),
        generator.normal(size=inputs),
        generator.normal(size=outputs),
    )


def regression(vector, sizes, x, y):
    outputs, hidden, inputs = sizes
    first, second = (
        vector[: hidden * inputs].reshape(hidden, inputs),
        vector[hidden * inputs :].reshape(outputs, hidden),
    )
    return np.sum((second @ (first @ x) - y) ** 2) / 2


@given(generators, SIZES, decades(-3, 3))
def test_lemmas_1_and_2_along_any_line(generator, sizes, scale):
    """The loss is a quartic on a line: its five values there give both derivatives exactly."""
    first, second, x, y = layers(generator, sizes, scale)
    point = np.concatenate([first.ravel(), second.ravel()])
    step = np.concatenate([generator.normal(size=first.size) * scale, generator.normal(size=second.size)])
    nodes = np.asarray([-2.0, -1.0, 0.0, 1.0, 2.0])
    quartic = np.polyfit(nodes, [regression(point + node * step, sizes, x, y) for node in nodes], 4)
    arrays = [jnp.asarray(array) for array in (first, second, x, y)]
    gradients = two_layer.gradients(*arrays)
    slope = np.concatenate([gradients.first.ravel(), gradients.second.ravel()]) @ step
    curvature = step @ two_layer.joint(two_layer.hessian(*arrays)) @ step
    size = np.abs(quartic).max()
    np.testing.assert_allclose(slope, quartic[3], atol=1e-10 * size)
    np.testing.assert_allclose(curvature / 2, quartic[2], atol=1e-10 * size)


@given(generators, SIZES, decades(-1, 1), decades(-4, 2))
def test_gauss_newton_score_is_the_dense_solve(generator, sizes, eps, damping):
    first, second, delta, _ = layers(generator, sizes)
    root = np.sqrt(2) * eps
    by_first = np.stack([np.outer(second[a], delta).ravel() for a in range(second.shape[0])]) * root
    by_second = np.kron(np.eye(second.shape[0]), first @ delta) * root
    jacobian = np.concatenate([by_first, by_second], axis=1)
    residual = root * second @ first @ delta
    expected = quadratic(jacobian.T @ jacobian, jacobian.T @ residual, damping)
    arrays = jnp.asarray(first), jnp.asarray(second), jnp.asarray(delta), eps
    np.testing.assert_allclose(gauss_newton.two_layer_influence(*arrays, damping), expected, rtol=1e-8)
    limit = gauss_newton.influence_limit(jnp.asarray(residual), jnp.asarray(jacobian))
    np.testing.assert_allclose(limit, residual @ residual, rtol=1e-9)


def test_limits_by_degree():
    assert [homogeneous.influence_limit(1.0, degree) for degree in (2, 0)] == [2, 0]
    np.testing.assert_allclose([homogeneous.influence_limit(3.0, degree) for degree in (4, 6)], [4, 3.6])


def test_the_hessian_of_the_worked_example():
    one = jnp.ones((1, 1))
    with_residual = two_layer.joint(two_layer.hessian(one, one, jnp.ones(1), jnp.zeros(1)))
    np.testing.assert_allclose(np.linalg.eigvalsh(with_residual), [-1, 3], atol=1e-12)
    without = two_layer.joint(two_layer.gauss_newton_hessian(one, one, jnp.ones(1)))
    np.testing.assert_allclose(np.linalg.eigvalsh(without), [0, 2], atol=1e-12)


def test_one_hidden_unit_can_be_definite_away_from_interpolation():
    """Indefiniteness needs two hidden units: with one, y = 2W₂W₁x leaves no negative eigenvalue."""
    one = jnp.ones((1, 1))
    blocks = two_layer.joint(two_layer.hessian(one, one, jnp.ones(1), 2 * jnp.ones(1)))
    np.testing.assert_allclose(np.linalg.eigvalsh(blocks), [1, 1], atol=1e-12)
