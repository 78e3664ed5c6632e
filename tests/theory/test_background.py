import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.theory import background, gauss_newton
from tests.theory.cases import compiled, decades, generators

background = compiled(background)


@given(generators, st.sampled_from((1, 3, 6)), decades(-3, 3))
def test_scores_are_bilinear_symmetric_and_signed(generator, size, damping):
    left, right, other = generator.normal(size=(3, size))
    factor = generator.normal(size=(2, size))
    curvature = jnp.asarray(factor.T @ factor)
    score = lambda a, b: float(background.score(jnp.asarray(a), jnp.asarray(b), curvature, damping))  # noqa: E731
    scale = np.sqrt(score(left, left) * score(right, right))
    tolerance = 1e-9 * (scale + np.linalg.norm(other) * np.linalg.norm(right) / damping)
    assert score(left, left) >= 0
    np.testing.assert_allclose(score(left, right), score(right, left), atol=tolerance)
    np.testing.assert_allclose(score(left + other, right), score(left, right) + score(other, right), atol=tolerance)
    signed = background.signed_score(jnp.asarray(left), jnp.asarray(right), curvature, damping)
    np.testing.assert_allclose(signed, -score(left, right), atol=tolerance)


@given(generators, st.sampled_from((1, 3, 6)))
def test_quadratic_objectives_move_as_eq_2_says(generator, size):
    """`F = ½θᵀHθ − bᵀθ`, and an example with `L = ½θᵀMθ − cᵀθ`; the first order by a small weight of both signs."""
    factors, (b, c) = generator.normal(size=(2, size + 2, size)), generator.normal(size=(2, size))
    hessian, extra = (factor.T @ factor + np.eye(size) for factor in factors)
    params = np.linalg.solve(hessian, b)
    weight = 1e-6 / np.linalg.norm(extra)
    ends = [np.linalg.solve(hessian + e * extra, b + e * c) for e in (weight, -weight)]
    gradient = jnp.asarray(extra @ params - c)
    response = background.response(jnp.asarray(hessian), gradient)
    slope = (ends[0] - ends[1]) / (2 * weight)
    np.testing.assert_allclose(response, slope, atol=1e-5 * np.abs(slope).max())
    np.testing.assert_allclose(background.extrapolation(jnp.asarray(params), response, weight), ends[0], atol=1e-10)
    influence = background.function_influence(jnp.asarray(c), jnp.asarray(hessian), gradient)
    np.testing.assert_allclose(influence, c @ response, rtol=1e-9, atol=1e-12)


@given(generators, st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
def test_rank_of_the_empirical_fisher(generator, outputs, inputs, examples):
    weight, deltas = generator.normal(size=(outputs, inputs)), generator.normal(size=(examples, inputs))
    rows = np.stack([np.outer(weight @ delta, delta).ravel() for delta in deltas])
    expected = np.linalg.matrix_rank(rows, tol=1e-9 * np.linalg.norm(rows, 2))
    assert gauss_newton.rank(examples, inputs, min(outputs, inputs)) == expected
    assert gauss_newton.total_influence(examples, int(expected)) == examples * expected
