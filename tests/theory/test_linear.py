import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from influence_ssl_jax.theory import linear, properties
from tests.theory.cases import alignment, cases, compiled, decades, generators, quadratic

linear, properties = map(compiled, (linear, properties))


@given(cases())
def test_theorem_1_is_the_dense_solve(case):
    weight, delta, eps, damping = case
    expected = quadratic(alignment(weight, delta, eps)[1], alignment(weight, delta, eps)[0], damping)
    np.testing.assert_allclose(linear.influence(*map(jnp.asarray, case[:2]), eps, damping), expected, rtol=1e-9)


@given(cases())
def test_without_damping_it_is_the_pseudo_inverse_and_twice_the_loss(case):
    weight, delta, eps, _ = case
    gradient, hessian = alignment(weight, delta, eps)
    actual = linear.influence(jnp.asarray(weight), jnp.asarray(delta), eps, 0.0)
    twice = 2 * np.sum((weight @ (eps * delta)) ** 2)
    np.testing.assert_allclose(actual, twice, rtol=1e-12)
    np.testing.assert_allclose(quadratic(hessian, gradient, 0.0), twice, rtol=1e-6, atol=1e-12 * np.sum(weight**2))


@given(cases())
def test_gradient_and_hessian_entry_by_entry(case):
    gradient, hessian = alignment(case.weight, case.delta, case.eps)
    arrays = jnp.asarray(case.weight), jnp.asarray(case.delta), case.eps
    scale = np.abs(case.weight).max() * np.abs(case.delta).max() ** 2 * case.eps**2
    np.testing.assert_allclose(linear.gradient(*arrays).ravel(), gradient, rtol=1e-10, atol=1e-13 * scale)
    np.testing.assert_allclose(linear.hessian(*arrays), hessian, rtol=1e-12)


@given(cases(), decades(-1, 1))
def test_scaling_and_gap(case, factor):
    weight, delta = jnp.asarray(case.weight), jnp.asarray(case.delta)
    here = linear.influence(weight, delta, case.eps, case.damping)
    np.testing.assert_allclose(
        linear.influence(factor * weight, delta, case.eps, case.damping), factor**2 * here, rtol=1e-12
    )
    there = linear.influence(weight, delta, factor * case.eps, factor**2 * case.damping)
    np.testing.assert_allclose(there, factor**2 * here, rtol=1e-12)
    limit, gap = linear.influence_limit(weight, delta, case.eps), linear.limit_gap(delta, case.eps, case.damping)
    np.testing.assert_allclose(here, limit * (1 - gap), rtol=1e-10, atol=1e-13 * float(limit))


@given(cases(), generators, decades(-2, 2))
def test_change_of_w_is_exact_and_bounded(case, generator, size):
    shift = generator.normal(size=case.weight.shape) * size
    arrays = jnp.asarray(case.weight), jnp.asarray(shift), jnp.asarray(case.delta)
    after = linear.influence(arrays[0] + arrays[1], arrays[2], case.eps, case.damping)
    before = linear.influence(arrays[0], arrays[2], case.eps, case.damping)
    change = properties.change(*arrays, case.eps, case.damping)
    np.testing.assert_allclose(change, after - before, rtol=0, atol=1e-12 * float(after + before))
    for order in (None, 2):
        norms = np.linalg.norm(case.weight, order), np.linalg.norm(shift, order)
        bound = properties.change_bound(*map(float, norms), arrays[2], case.eps)
        assert abs(change) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("damping", [0.0, 1e-6, 1.0])
def test_nothing_to_measure_is_zero(damping):
    weight, delta = jnp.ones((2, 3)), jnp.ones(3)
    for arguments in ((0 * weight, delta, 1.0), (weight, 0 * delta, 1.0), (weight, delta, 0.0)):
        assert linear.influence(*arguments, damping) == 0


def test_float32_keeps_what_powers_of_eps_lose():
    weight, delta = jnp.ones((1, 1), jnp.float32), jnp.ones(1, jnp.float32)
    eps, damping = jnp.float32(1e-12), jnp.float32(1e-24)
    assert 4 * eps**4 / (damping + 2 * eps**2) == 0
    np.testing.assert_allclose(linear.influence(weight, delta, eps, damping), 4e-24 / 3, rtol=1e-6)


@given(cases())
def test_float32_agrees_with_float64(case):
    single = (np.asarray(value, np.float32) for value in case)
    weight, delta, eps, damping = (jnp.asarray(value) for value in single)
    doubled = (jnp.asarray(value, jnp.float64) for value in (weight, delta, eps, damping))
    expected = linear.influence(*doubled)
    scale = np.sum(np.abs(case.weight) @ np.abs(case.eps * case.delta)) ** 2
    np.testing.assert_allclose(linear.influence(weight, delta, eps, damping), expected, rtol=1e-3, atol=1e-6 * scale)
