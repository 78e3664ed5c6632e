"""Coverage of conformal intervals on exchangeable data, and curves that recover planted relations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.calibration import Calibration

FORMS = ["proportional", "log_linear", "monotone"]


def drawn(rng, n, factor=0.3, power=1.2, noise=0.2, width=0.04):
    """Exact scores, a backend's distorted and noisy version, and certified bounds around the exact ones."""
    exact = np.exp(rng.normal(size=n))
    scores = (exact / factor) ** (1 / power) * np.exp(noise * rng.standard_t(3, size=n))
    share = rng.uniform(size=n)
    return scores, exact, exact * (1 - width * share), exact * (1 + width * (1 - share))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "level"), [(30, 0.8), (200, 0.9)])
def test_coverage_is_at_least_nominal(form, n, level):
    """Over independent repetitions: never below nominal by more than two standard errors, nor far above it."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(120):
        scores, _, lower, upper = drawn(rng, n)
        calibrator = Calibration(form, level, seed=int(rng.integers(2**31))).fit(scores, lower, upper)
        fresh, truth, _, _ = drawn(rng, 20)
        found = calibrator(fresh)
        shares.append(np.mean((found.low <= truth) & (truth <= found.high)))
    error = np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) >= level - 2 * error
    assert np.mean(shares) <= level + 2 / (n // 2 + 1) + 0.03 + 2 * error  # 0.03: bounds count to their farther end


@pytest.mark.parametrize("n", [30, 400])
def test_held_out_coverage_is_what_is_expected(n):
    """Exact scores without bounds' width: coverage ⌈(m + 1) level⌉ / (m + 1), within its standard error over repetitions."""
    rng, shares = np.random.default_rng(3), []
    for _ in range(60):
        scores, exact, _, _ = drawn(rng, n)
        found = Calibration("proportional").coverage(scores, exact, exact, splits=1)
        shares.append(found.share)
    np.testing.assert_allclose(np.std(shares), found.standard_error, rtol=0.35)
    assert abs(np.mean(shares) - found.expected) <= 3 * found.standard_error / len(shares) ** 0.5
    assert found.expected == np.ceil((n // 3 + 1) * 0.9) / (n // 3 + 1)


def test_certificates_without_an_upper_bound_count_as_infinite_errors():
    """Left out, they would make the radius one of easy examples alone."""
    scores, exact, _, _ = drawn(np.random.default_rng(7), 200)
    open_ended = np.where(np.arange(200) % 4 == 0, np.inf, exact)
    assert np.isinf(Calibration(level=0.9).fit(scores, exact, open_ended).radius)
    assert np.isfinite(Calibration(level=0.5).fit(scores, exact, open_ended).radius)


@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(0.5, 2))
def test_a_power_law_is_recovered_exactly(seed, factor, power):
    scores = np.exp(np.random.default_rng(seed).normal(size=20))
    exact = factor * scores**power
    found = Calibration("log_linear").fit(scores, exact, exact)(scores)
    np.testing.assert_allclose(found.score, exact, rtol=1e-9)
    np.testing.assert_allclose(found.high / found.low, 1.0, rtol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from(FORMS))
def test_intervals_hold_their_score_and_keep_its_order(seed, form):
    rng = np.random.default_rng(seed)
    scores, _, lower, upper = drawn(rng, 40)
    found = Calibration(form).fit(scores, lower, upper)(np.sort(scores))
    assert (found.low <= found.score).all()
    assert (found.score <= found.high).all()
    assert (np.diff(found.score) >= -1e-12).all()


def test_a_proportional_curve_is_one_factor():
    scores, _, lower, upper = drawn(np.random.default_rng(1), 60)
    found = Calibration("proportional").fit(scores, lower, upper)(scores)
    np.testing.assert_allclose(found.score / scores, (found.score / scores)[0])


def test_wider_certificates_make_wider_intervals():
    rng = np.random.default_rng(2)
    scores, exact, _, _ = drawn(rng, 60)
    radii = [Calibration().fit(scores, exact * (1 - w), exact * (1 + w)).radius for w in (0.0, 0.1, 0.3)]
    assert radii == sorted(radii)
    assert radii[2] >= radii[0] + 0.2


def test_too_small_a_sample_has_an_infinite_interval():
    scores, _, lower, upper = drawn(np.random.default_rng(4), 12)
    found = Calibration(level=0.9).fit(scores, lower, upper)(scores)
    assert np.isinf(found.high).all()
    assert (found.low == 0).all()


def test_what_is_no_score_stays_nan_and_is_not_fitted():
    scores, _, lower, upper = drawn(np.random.default_rng(5), 60)
    spoilt = np.concatenate([scores, [np.nan, 0.0, -1.0]])
    more = (np.concatenate([bound, [1.0, 1.0, 1.0]]) for bound in (lower, upper))
    found = Calibration().fit(spoilt, *more)(spoilt)
    assert np.isnan(found.score[-3:]).all()
    assert np.isfinite(found.score[:-3]).all()


def test_errors_say_what_to_do():
    with pytest.raises(InfluenceError, match="Audit more examples"):
        Calibration().fit(-np.ones(9), np.ones(9), np.ones(9))
    with pytest.raises(InfluenceError, match="at least 6 examples"):
        Calibration().coverage(np.ones(5), np.ones(5), np.ones(5))
    with pytest.raises(InfluenceError, match="has an upper bound"):
        Calibration().fit(np.ones(9), np.ones(9), np.full(9, np.inf))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Calibration(level=90.0)
