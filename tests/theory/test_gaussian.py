import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.theory import gaussian
from tests.theory.cases import compiled, decades, generators

gaussian = compiled(gaussian)

SHAPES = st.sampled_from(((1, 1), (2, 3), (4, 6)))


@given(generators, SHAPES, decades(-3, 1))
def test_moments_are_those_of_the_weighted_chi_squares(generator, shape, sigma):
    """In the eigenbasis of Γ the energy is a sum of independent weighted non-central χ² variables."""
    weight, mean = generator.normal(size=shape), generator.normal(size=shape[1])
    values, vectors = np.linalg.eigh(weight.T @ weight)
    shift = (vectors.T @ mean / sigma) ** 2
    first = np.sum(values * sigma**2 * (1 + shift))
    second = np.sum(values**2 * sigma**4 * (2 + 4 * shift))
    arrays = jnp.asarray(weight), jnp.asarray(mean), sigma
    np.testing.assert_allclose(gaussian.energy_mean(*arrays), first, rtol=1e-10)
    np.testing.assert_allclose(gaussian.energy_variance(*arrays), second, rtol=1e-9)
    rank = values.sum() ** 2 / np.sum(values**2)
    np.testing.assert_allclose(gaussian.effective_rank(arrays[0]), rank, rtol=1e-10)


@given(generators, SHAPES, decades(-3, 1), st.integers(2, 6))
def test_estimators_against_tensors_of_moments(generator, shape, sigma, draws):
    """E[ηᵢηⱼηₖηₗ] written out."""
    weight = generator.normal(size=shape)
    factor = generator.normal(size=(shape[1] + 2, shape[1]))
    curvature = factor.T @ factor + 0.1 * np.eye(shape[1])
    one = np.eye(shape[1])
    fourth = sum(np.einsum(axes, one, one) for axes in ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl")) * sigma**4
    gamma, inverse = weight.T @ weight, np.linalg.inv(curvature)
    single = 4 * np.einsum("ij,kl,ijkl->", gamma, inverse, fourth)
    mean_gradient = 4 * sigma**4 * np.einsum("ij,ji->", gamma, inverse)
    arrays = jnp.asarray(weight), jnp.asarray(curvature), sigma
    np.testing.assert_allclose(gaussian.single_draw_score(*arrays), single, rtol=1e-9)
    np.testing.assert_allclose(gaussian.mean_gradient_score(*arrays), mean_gradient, rtol=1e-9)
    averaged = gaussian.averaged_gradient_score(single, mean_gradient, float(draws))
    np.testing.assert_allclose(averaged, single / draws + mean_gradient * (draws - 1) / draws, rtol=1e-12)
    rows = generator.normal(size=(3, shape[1]))
    pairs = [rows[k] @ inverse @ rows[m] for k in range(3) for m in range(3) if k != m]
    score = gaussian.cross_draw_score(jnp.asarray(rows), arrays[1])
    np.testing.assert_allclose(score, np.mean(pairs), rtol=1e-8, atol=1e-10 * np.abs(pairs).max())


def test_a_single_draw_of_an_image_is_almost_all_draw():
    assert gaussian.isotropic_ratio(3072.0) == 3074


def test_cross_draws_of_opposite_gradients_score_below_zero():
    rows = jnp.asarray([[1.0, 2.0], [-1.0, -2.0]])
    assert gaussian.cross_draw_score(rows, jnp.eye(2)) == pytest.approx(-5)
