"""Rank statistics against counting by hand, scipy's own, and what they must be invariant to."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from influence_ssl_jax.evaluation import statistics

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, size: int = 40, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two related samples with ties."""
    generator = np.random.default_rng(seed)
    left = generator.integers(levels, size=size).astype(float)
    return left, left + generator.integers(levels, size=size)


@given(seeds)
def test_spearman_is_scipys(seed):
    left, right = draw(seed)
    assert statistics.spearman(left, right) == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)


@given(seeds)
def test_spearman_reads_ranks_alone(seed):
    left, right = draw(seed)
    assert statistics.spearman(np.exp(left / 3), right**3) == pytest.approx(statistics.spearman(left, right), abs=1e-12)


@given(seeds)
def test_partial_correlation_given_one_control_is_the_textbook_formula(seed):
    left, right = draw(seed)
    control = np.random.default_rng(seed + 1).normal(size=len(left)) + 0.3 * left
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in [(left, right), (left, control), (right, control)])
    textbook = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert statistics.partial_spearman(left, right, control[:, None]) == pytest.approx(textbook, abs=1e-10)


@given(seeds)
def test_partial_correlation_given_several_is_the_precision_matrix(seed):
    columns = np.random.default_rng(seed).normal(size=(60, 5)).cumsum(axis=1)
    precision = np.linalg.inv(np.corrcoef(stats.rankdata(columns, axis=0), rowvar=False))
    expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    correlation = statistics.partial_spearman(columns[:, 0], columns[:, 1], columns[:, 2:])
    assert correlation == pytest.approx(expected, abs=1e-9)


def test_a_score_that_only_restates_a_baseline_has_no_partial_correlation():
    left, right = draw(3)
    assert math.isnan(statistics.partial_spearman(np.exp(left), right, left[:, None]))
    assert math.isnan(statistics.partial_spearman(left[:4], right[:4], np.stack([left[:4], right[:4]], axis=1)))


@given(seeds)
def test_explained_variance_by_one_control_is_the_squared_correlation(seed):
    left, right = draw(seed)
    assert statistics.explained_variance(left, right[:, None]) == pytest.approx(
        statistics.spearman(left, right) ** 2, abs=1e-10
    )
    assert statistics.explained_variance(left, np.column_stack([right, np.exp(left)])) == pytest.approx(1.0, abs=1e-10)
    assert math.isnan(statistics.explained_variance(left[:3], right[:3, None]))
    assert math.isnan(statistics.explained_variance(np.ones(len(left)), right[:, None]))


@pytest.mark.parametrize("side", [np.ones(10), np.full(10, np.nan)])
def test_constant_or_missing_values_have_no_rank_correlation(side):
    assert math.isnan(statistics.spearman(side, np.arange(10.0)))


def test_values_that_are_not_finite_are_left_out():
    left, right = draw(5)
    holed = left.copy()
    holed[[2, 7]] = np.nan, np.inf
    kept = np.isfinite(holed)
    assert statistics.spearman(holed, right) == statistics.spearman(left[kept], right[kept])
    positive = right > 10
    assert statistics.auroc(holed, positive) == statistics.auroc(left[kept], positive[kept])
    assert statistics.average_precision(holed, positive) == statistics.average_precision(left[kept], positive[kept])


@given(seeds)
def test_auroc_counts_pairs(seed):
    left, right = draw(seed)
    positive = right > np.median(right)
    pairs = left[positive][:, None] - left[~positive][None, :]
    assert statistics.auroc(left, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)
    assert statistics.auroc(-left, positive) == pytest.approx(1 - statistics.auroc(left, positive), abs=1e-12)


def test_average_precision_by_hand():
    score = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    positive = np.array([True, False, True, False, False])
    assert statistics.average_precision(score, positive) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_one_kind_alone_has_no_recovery():
    score = np.arange(4.0)
    assert math.isnan(statistics.auroc(score, np.ones(4, bool)))
    assert math.isnan(statistics.average_precision(score, np.zeros(4, bool)))


def test_overlaps_of_the_ends():
    left = np.arange(10.0)
    right = np.array([1.0, 0, 2, 3, 4, 5, 6, 9, 8, 7])
    assert statistics.top_overlap(left, right, 3) == 1.0
    assert statistics.top_overlap(left, right, 2) == 0.5
    assert statistics.bottom_overlap(left, right, 2) == 1.0
    assert statistics.bottom_overlap(left, right, 1) == 0.0
    assert statistics.top_overlap(left, -right, 10) == 1.0


@pytest.mark.parametrize("k", [0, 11])
def test_an_overlap_larger_than_the_sample_is_refused(k):
    with pytest.raises(ValueError, match=f"got k={k}"):
        statistics.top_overlap(np.arange(10.0), np.arange(10.0), k)


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    sample = np.random.default_rng(0).normal(2.0, 1.0, size=400)
    estimate = statistics.bootstrap(lambda values: float(values.mean()), sample, resamples=2000)
    error = sample.std() / math.sqrt(len(sample))
    assert estimate.value == sample.mean()
    assert estimate.low == pytest.approx(sample.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(sample.mean() + 1.96 * error, abs=0.15 * error)


def test_bootstrap_draws_examples_not_columns():
    left, right = draw(9, size=80)
    estimate = statistics.bootstrap(statistics.spearman, left, right)
    assert estimate.low < estimate.value < estimate.high
    assert estimate == statistics.bootstrap(statistics.spearman, left, right)
    rare = np.zeros(80, bool)
    rare[0] = True
    assert np.isfinite(statistics.bootstrap(statistics.auroc, left, rare)).all()


def test_bootstrap_of_nothing_is_undefined():
    empty = np.zeros(0)
    assert np.isnan(statistics.bootstrap(statistics.spearman, empty, empty)).all()


def test_a_share_has_wilsons_interval():
    estimate, z = statistics.share(3, 20), stats.norm.ppf(0.975)
    centre = (3 / 20 + z**2 / 40) / (1 + z**2 / 20)
    half = z / (1 + z**2 / 20) * math.sqrt(0.15 * 0.85 / 20 + z**2 / 1600)
    assert estimate.value == 0.15
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), rel=1e-9)
    assert statistics.share(0, 5).low == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(statistics.share(0, 0)).all()


SHARES = [0.0, 0.1, 0.25, 0.5, 0.95, 1.0]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=40),
    st.integers(1, 5),
)
@settings(max_examples=20)
def test_pieces_have_the_quantiles_of_the_whole(numbers, pieces):
    whole = np.array(numbers)
    np.testing.assert_array_equal(
        statistics.quantiles(lambda: np.array_split(whole, pieces), SHARES), np.quantile(whole, SHARES)
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_many_numbers_and_ties(scale):
    whole = np.round(np.exp(scale * np.random.default_rng(0).normal(size=5_000)), 1)
    np.testing.assert_array_equal(
        statistics.quantiles(lambda: np.array_split(whole, 7), SHARES), np.quantile(whole, SHARES)
    )


def test_no_numbers_have_no_quantiles():
    assert np.isnan(statistics.quantiles(lambda: [np.zeros(0)], SHARES)).all()
