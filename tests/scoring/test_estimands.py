"""Estimates and their errors against sums written out, and against simulation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.scoring import estimands

estimate = jax.jit(estimands.estimate, static_argnums=1)


def gram_of(seed, draws, batch=3, width=4):
    g = np.random.default_rng(seed).normal(size=(batch, draws, width)) + 1.0
    return g, jnp.asarray(np.einsum("bkf,blf->bkl", g, g))


def plain(gram, estimand):
    """One example's estimate as a loop."""
    k = len(gram)
    if estimand == "mean_of_scores":
        return sum(gram[i, i] for i in range(k)) / k
    pairs = [(i, j) for i, j in itertools.product(range(k), range(k)) if estimand == "score_of_mean" or i != j]
    return sum(gram[i, j] for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("estimand", ["mean_of_scores", "u_statistic", "score_of_mean"])
@given(seed=st.integers(0, 10**6), draws=st.sampled_from([3, 5]))
def test_estimates_and_errors_are_the_written_out_sums(estimand, seed, draws):
    _, gram = gram_of(seed, draws)
    estimates = estimate(gram, estimand)
    np.testing.assert_allclose(estimates.score, [plain(row, estimand) for row in np.asarray(gram)], rtol=1e-12)
    for row, error in zip(np.asarray(gram), estimates.standard_error, strict=True):
        if estimand == "mean_of_scores":
            want = np.std(np.diag(row), ddof=1) / draws**0.5
        else:
            without = [plain(np.delete(np.delete(row, i, 0), i, 1), estimand) for i in range(draws)]
            want = np.sqrt((draws - 1) / draws * np.sum((without - np.mean(without)) ** 2))
        np.testing.assert_allclose(error, want, rtol=1e-9)


def test_the_u_statistic_is_unbiased_for_the_score_of_the_mean_gradient():
    """E g = (1, 1, 1, 1): the score of the mean is 4, that of a single draw 8, of a mean of 3 draws 4 + 4/3."""
    _, gram = gram_of(0, draws=3, batch=40_000)
    for estimand, target in (("u_statistic", 4.0), ("mean_of_scores", 8.0), ("score_of_mean", 4 + 4 / 3)):
        scores = np.asarray(estimate(gram, estimand).score)
        assert abs(scores.mean() - target) < 4 * scores.std() / len(scores) ** 0.5


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_errors_of_scores_whose_squares_leave_the_type(size):
    """With a λ of 1e-30 scores are 1e31: float32 holds them, and not their squares."""
    _, gram = gram_of(0, draws=4)
    narrow = (size * gram).astype(jnp.float32)
    for estimand in ("mean_of_scores", "u_statistic"):
        want = size * estimate(gram, estimand).standard_error
        np.testing.assert_allclose(estimate(narrow, estimand).standard_error, want, rtol=1e-4)


def test_too_few_draws():
    _, gram = gram_of(0, draws=1)
    assert np.isnan(estimate(gram, "mean_of_scores").standard_error).all()
    with pytest.raises(ValueError, match="at least 2"):
        estimate(gram, "u_statistic")
