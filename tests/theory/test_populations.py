"""Groups, deviation, leverage and leaving out, on populations with repeated, zero and orthogonal rows."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.theory import deviation, groups, leave_out, leverage
from tests.theory.cases import alignment, compiled, generators, populations, quadratic

deviation, groups, leave_out, leverage = map(compiled, (deviation, groups, leave_out, leverage))


def arrays(population):
    return jnp.asarray(population.weight), jnp.asarray(population.deltas), population.eps


def parts(population):
    """Gradients of all points and the Hessian of their mean loss."""
    derivatives = [alignment(population.weight, delta, population.eps) for delta in population.deltas]
    return np.stack([g for g, _ in derivatives]), np.mean([h for _, h in derivatives], axis=0)


@given(populations())
def test_the_score_with_the_data_set_hessian_is_the_dense_solve(population):
    gradients, hessian = parts(population)
    expected = [quadratic(hessian, gradient, population.damping) for gradient in gradients]
    scores = leverage.influences(*arrays(population), population.damping)
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-12 * max(expected))


@given(populations())
def test_leverages_lie_below_one_over_copies_and_sum_to_the_effective_dimension(population):
    _, deltas, eps = arrays(population)
    leverages = np.asarray(leverage.leverages(deltas, eps, population.damping))
    copies = (population.deltas[:, None] == population.deltas[None]).all(axis=2).sum(axis=1)
    assert (leverages >= 0).all()
    assert (leverages * copies < 1).all()
    dimension = leverage.effective_dimension(deltas, eps, population.damping)
    np.testing.assert_allclose(leverages.sum(), dimension, rtol=1e-8)
    assert dimension <= min(deltas.shape)


@given(populations())
def test_claims_6_and_7_in_both_readings(population):
    weight, deltas, eps = arrays(population)
    moved = population.eps * population.deltas @ population.weight.T
    singles = 2 * np.sum(moved**2)
    remainder = groups.pooled_remainder(weight, deltas, eps)
    pooled = 2 * np.sum(moved.sum(axis=0) ** 2)
    np.testing.assert_allclose(groups.pooled_influence(weight, deltas, eps), pooled, atol=1e-12 * singles)
    np.testing.assert_allclose(singles + remainder, pooled, atol=1e-12 * singles)
    assert abs(remainder) <= groups.pooled_remainder_bound(weight, deltas, eps) * (1 + 1e-12)
    low, high = groups.pooled_remainder_range(weight, deltas, eps)
    assert low - 1e-12 * singles <= remainder <= high + 1e-12 * singles

    gradients, hessian = parts(population)
    block = leverage.hessian(deltas, eps)
    kernel = groups.kernel(deltas, block, population.damping)
    shared = groups.shared_influence(weight, deltas, eps, kernel)
    expected = quadratic(hessian, gradients.sum(axis=0), population.damping)
    scale = sum(quadratic(hessian, gradient, population.damping) for gradient in gradients)
    np.testing.assert_allclose(shared, expected, rtol=1e-9, atol=1e-11 * scale)
    own = groups.own_influence(weight, deltas, eps, population.damping)
    whole = len(gradients) * hessian
    np.testing.assert_allclose(own, quadratic(whole, gradients.sum(axis=0), population.damping), rtol=1e-8)
    np.testing.assert_allclose(groups.own_influence(weight, deltas, eps, 0.0), singles, rtol=1e-9)


@given(populations())
def test_proposition_2_splits_exactly(population):
    """One draw per input: the within term is zero and the between term is everything."""
    weight, deltas, eps = arrays(population)
    moments = population.deltas[:, :, None] * population.deltas[:, None, :]
    mean = jnp.asarray(moments.mean(axis=0))
    influences = 2 * np.sum((population.eps * population.deltas @ population.weight.T) ** 2, axis=1)
    for delta, moment, influence in zip(deltas, moments, influences, strict=True):
        within = deviation.within_term(weight, delta, jnp.asarray(moment), eps)
        between = deviation.between_term(weight, jnp.asarray(moment), mean, eps)
        np.testing.assert_allclose(within, 0, atol=1e-12 * influences.max())
        np.testing.assert_allclose(between, influence - influences.mean(), atol=1e-10 * influences.max())
    np.testing.assert_allclose(deviation.mean_influence(weight, mean, eps), influences.mean(), rtol=1e-10)
    np.testing.assert_allclose(2 * deviation.mean_distance(weight, mean, eps), influences.mean(), rtol=1e-10)


@given(populations(), generators, st.integers(1, 3))
def test_leaving_a_group_out_is_refitting(population, generator, size):
    _, deltas, eps = arrays(population)
    anchor = generator.normal(size=population.weight.shape)
    chosen = generator.choice(len(population.deltas), size, replace=False)

    def fit(kept):
        second = 2 * (population.eps * kept).T @ (population.eps * kept) / len(population.deltas)
        return population.damping * np.linalg.solve(second + population.damping * np.eye(kept.shape[1]), anchor.T).T

    full, without = fit(population.deltas), fit(np.delete(population.deltas, chosen, axis=0))
    optimum = leave_out.optimum(jnp.asarray(anchor), deltas, eps, population.damping)
    np.testing.assert_allclose(optimum, full, rtol=1e-7, atol=1e-9)
    gram = leverage.gram(deltas, eps, population.damping)[np.ix_(chosen, chosen)]
    members = population.deltas[chosen].T
    moved = leave_out.group_outputs(jnp.asarray(full @ members), gram)
    np.testing.assert_allclose(moved, without @ members, rtol=1e-7, atol=1e-9 * np.abs(members).max())
    if size == 1:
        step = leave_out.exact_steps(jnp.asarray(full), deltas, eps, population.damping)[chosen[0]]
        np.testing.assert_allclose(full + step, without, rtol=1e-7, atol=1e-9)
