"""Deviation of planted scores: known bias, known noise, known ranks."""

import numpy as np

from influence_ssl_jax.evaluation.calibration import Calibration, deviation


def planted(n=160):
    rng = np.random.default_rng(0)
    exact = np.exp(rng.normal(size=n))
    return rng, exact, exact * 0.99, exact * 1.01


def test_a_perfect_score():
    rng, exact, lower, upper = planted()
    found = deviation(exact, lower, upper, rng.uniform(size=len(exact)), Calibration())
    assert found.inside.value == 1
    assert found.raw.median < 1e-12
    assert found.calibrated.p90 < 6e-5  # the calibration's middle of the bounds is the geometric one: 5e-5 off at 1 %
    assert found.spearman.value > 1 - 1e-12
    assert found.top == found.bottom == 1


def test_a_factor_is_removed_and_noise_is_not():
    rng, exact, lower, upper = planted()
    noise = np.exp(0.1 * rng.normal(size=len(exact)))
    found = deviation(3 * exact * noise, lower, upper, exact, Calibration())
    assert found.inside.value == 0
    np.testing.assert_allclose(found.raw.median, 2.0, atol=0.35)
    np.testing.assert_allclose(found.calibrated.median, 0.067, atol=0.02)  # the median of |N(0, 0.1²)|
    assert np.isnan(found.partial.value)  # the loss given is the exact score itself: nothing is left to know
    assert 0.85 <= found.coverage.share <= 1


def test_what_has_no_number_is_left_out():
    rng, exact, lower, upper = planted()
    spoilt = exact.copy()
    spoilt[:5] = np.nan
    found = deviation(spoilt, lower, upper, rng.uniform(size=len(exact)), Calibration())
    assert found.inside.value == 1
    assert found.spearman.value > 1 - 1e-12
