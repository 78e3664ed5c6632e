"""Coverage of conformal intervals, curves that recover planted relations, and errors of planted scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax import randomness
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.calibration import SHARES, Calibration, deviation
from influence_ssl_jax.randomness import Stream

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
        calibrated = calibrator(fresh)
        shares.append(np.mean((calibrated.low <= truth) & (truth <= calibrated.high)))
    error = np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) >= level - 2 * error
    assert np.mean(shares) <= level + 0.05 + 2 * error  # bounds count to their farther end, counts are whole numbers


@pytest.mark.parametrize("audited", [200, 500])
def test_every_tenth_and_the_highest_twentieth_are_covered_where_the_noise_grows_with_the_score(audited):
    """100 audits: one radius for all covers .99 of the lowest tenth and .65 of the highest twentieth.

    Neither above nor below: 200 leave either half of the highest tenth with less than 9 in a third of the audits. Of 11
    groups the farthest is within 3.2 standard errors in 98 of 100 cases.
    """
    rng, shares = np.random.default_rng(6), []
    population = np.exp(rng.normal(size=20_000))
    tenths = np.quantile(population, SHARES)
    group = np.searchsorted(tenths, population)
    spread = 0.05 * np.exp(0.8 * np.log(population))
    for seed in range(100):
        exact = population * np.exp(spread * rng.standard_t(3, len(population)))
        sample = rng.permutation(len(population))[:audited]
        known = population[sample], exact[sample], exact[sample]
        fitted = Calibration(seed=seed).fit(*known, tenths)
        np.testing.assert_allclose(fitted.expected, 0.9, rtol=1e-12)
        calibrated = fitted(population)
        inside = (calibrated.low <= exact) & (exact <= calibrated.high)
        shares.append(np.bincount(group, inside, minlength=11) / np.bincount(group))
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1) / 10
    assert (np.abs(mean - 0.9) <= 3.2 * error).all()
    assert (error < 0.014).all()


def test_every_radius_is_an_order_statistic_of_its_own_group():
    """Of 30 examples of a tenth the 27th of 29, of 15 of a half the largest of 9; a fifth or more fit the curve."""
    scores, errors = np.exp(np.arange(300.0)), np.random.default_rng(0).permutation(np.linspace(0.1, 1, 300))
    half = np.exp(errors)  # bounds a factor of half below and above: whichever examples fit it, the curve is the score
    tenths = np.exp(np.array([*np.arange(29.5, 270, 30), 284.5]))
    fitted = Calibration("proportional").fit(scores, scores / half, scores * half, tenths)
    assert (
        fitted.counts.tolist() == [19] * 3 + [29] * 5 + [19] + [9] * 2
    )  # 21 are left over; four tenths give up 10 more
    for group, count in enumerate(fitted.counts):
        own = np.sort(errors[fitted.groups(scores) == group])
        place = 9 * (count + 1) // 10
        assert np.isclose(own[place - 1 : place + len(own) - count], fitted.radii[group], rtol=1e-9).any()


def test_a_group_of_few_examples_takes_the_nearest_ones_too():
    """Errors rise with the score: 4 audited examples in the highest half of the highest tenth, and the 5 next below."""
    scores = np.exp(np.arange(200.0))
    errors = 1 + np.arange(200.0)
    half = np.exp(errors / 1000)
    tenths = np.exp(np.array([*np.arange(19.5, 180, 20), 195.5]))
    fitted = Calibration("proportional").fit(scores, scores / half, scores * half, tenths)
    assert fitted.counts.tolist() == [9] * 3 + [19] * 6 + [9, 9]
    np.testing.assert_allclose(fitted.radii[-1], 0.2, rtol=1e-9)  # the largest of 9
    assert fitted.radii[-2] <= 0.196 * (1 + 1e-9)  # 16 of its own: it lends and takes none


def test_some_exact_scores_that_are_nearly_zero_do_not_move_the_curve_nor_widen_the_intervals():
    """Two of 200, as blank images are."""
    scores, exact, _, _ = drawn(np.random.default_rng(8), 200)
    widths = []
    for count in (0, 2):
        spoilt = np.where(np.arange(200) < count, 1e-29, exact)
        calibrated = Calibration().fit(np.where(np.arange(200) < count, 2e-14, scores), spoilt, spoilt)(scores[2:])
        widths.append(np.median(calibrated.high / calibrated.low))
    assert widths[1] < 1.2 * widths[0]


@pytest.mark.parametrize("form", FORMS)
def test_negative_exact_scores_widen_the_intervals_until_they_cover(form):
    """Of a U-statistic: positive scores whose exact ones are negative in a fifth of the cases."""
    rng, shares = np.random.default_rng(9), []
    for seed in range(60):
        exact = rng.normal(0.8, 1.0, 600)
        scores = np.abs(exact + 0.3 * rng.normal(size=600))
        calibrated = Calibration(form, seed=seed).fit(scores[:200], exact[:200], exact[:200])(scores[200:])
        shares.append(np.mean((calibrated.low <= exact[200:]) & (exact[200:] <= calibrated.high)))
    assert np.mean(shares) >= 0.9 - 2 * np.std(shares) / 60**0.5


def test_one_audit_can_cover_less_as_often_as_it_is_said():
    rng, below, said, floors = np.random.default_rng(10), 0, [], []
    shares = []
    for seed in range(150):
        scores, exact, _, _ = drawn(rng, 2200)
        audited = slice(0, 200)
        calibration = Calibration(seed=seed)
        calibrated = calibration.fit(scores[audited], exact[audited], exact[audited])(scores[200:])
        shares.append(np.mean((calibrated.low <= exact[200:]) & (exact[200:] <= calibrated.high)))
        told = calibration.coverage(scores[audited], exact[audited], exact[audited], splits=1)
        said.append(told.chance_below)
        floors.append(told.floor)
    below = np.mean(np.array(shares) < 0.9)
    assert abs(below - np.mean(said)) < 0.13  # three standard errors
    assert np.mean(np.array(shares) < np.array(floors)) < 0.11


@pytest.mark.parametrize("n", [30, 400])
def test_held_out_coverage_is_what_is_expected(n):
    """Exact scores without bounds' width: coverage ⌈(m + 1) level⌉ / (m + 1), within its standard error over repetitions."""
    rng, coverages = np.random.default_rng(3), []
    for _ in range(60):
        scores, exact, _, _ = drawn(rng, n)
        coverages.append(Calibration("proportional").coverage(scores, exact, exact, splits=1))
    shares, expected, errors = (
        np.array([getattr(each, name) for each in coverages]) for name in coverages[0]._fields[:3]
    )
    np.testing.assert_allclose(np.std(shares - expected), np.mean(errors), rtol=0.35)
    assert abs(np.mean(shares - expected)) <= 3 * np.mean(errors) / len(coverages) ** 0.5
    assert (expected >= 0.9 - 1e-12).all()


def test_certificates_without_an_upper_bound_count_as_infinite_errors():
    """Left out, they would make the radius one of easy examples alone."""
    scores, exact, _, _ = drawn(np.random.default_rng(7), 200)
    open_ended = np.where(np.arange(200) % 4 == 0, np.inf, exact)
    assert np.isinf(Calibration(level=0.9).fit(scores, exact, open_ended).radii).mean() > 0.6
    assert np.isfinite(Calibration(level=0.2).fit(scores, exact, open_ended).radii).mean() > 0.6


@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(0.5, 2))
def test_a_power_law_is_recovered_exactly(seed, factor, power):
    scores = np.exp(np.random.default_rng(seed).normal(size=20))
    exact = factor * scores**power
    calibrated = Calibration("log_linear").fit(scores, exact, exact)(scores)
    np.testing.assert_allclose(calibrated.score, exact, rtol=1e-9)
    np.testing.assert_allclose(calibrated.high / calibrated.low, 1.0, rtol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from(FORMS))
def test_intervals_hold_their_score_and_keep_its_order(seed, form):
    rng = np.random.default_rng(seed)
    scores, _, lower, upper = drawn(rng, 40)
    calibrated = Calibration(form).fit(scores, lower, upper)(np.sort(scores))
    assert (calibrated.low <= calibrated.score).all()
    assert (calibrated.score <= calibrated.high).all()
    assert (np.diff(calibrated.score) >= -1e-12).all()


def test_a_proportional_curve_is_one_factor():
    scores, _, lower, upper = drawn(np.random.default_rng(1), 60)
    calibrated = Calibration("proportional").fit(scores, lower, upper)(scores)
    np.testing.assert_allclose(calibrated.score / scores, (calibrated.score / scores)[0])


def test_wider_certificates_make_wider_intervals():
    rng = np.random.default_rng(2)
    scores, exact, _, _ = drawn(rng, 60)
    fits = [Calibration("proportional").fit(scores, exact * (1 - w), exact * (1 + w)) for w in (0.0, 0.1, 0.3)]
    radii = [np.mean(fit.radii) for fit in fits]
    assert radii == sorted(radii)
    assert radii[2] >= radii[0] + 0.2


def test_too_small_a_sample_has_an_infinite_interval():
    scores, _, lower, upper = drawn(np.random.default_rng(4), 12)
    calibrated = Calibration(level=0.9).fit(scores, lower, upper)(scores)
    assert np.isinf(calibrated.high).all()
    assert (calibrated.low == 0).all()


def test_what_is_no_score_stays_nan_and_is_not_fitted():
    scores, _, lower, upper = drawn(np.random.default_rng(5), 60)
    spoilt = np.concatenate([scores, [np.nan, 0.0, -1.0]])
    more = (np.concatenate([bound, [1.0, 1.0, 1.0]]) for bound in (lower, upper))
    calibrated = Calibration().fit(spoilt, *more)(spoilt)
    assert np.isnan(calibrated.score[-3:]).all()
    assert np.isfinite(calibrated.score[:-3]).all()


def test_errors_say_what_to_do():
    with pytest.raises(InfluenceError, match="Audit more examples"):
        Calibration().fit(-np.ones(9), np.ones(9), np.ones(9))
    with pytest.raises(InfluenceError, match="at least 6 examples"):
        Calibration().coverage(np.ones(5), np.ones(5), np.ones(5))
    assert Calibration().coverage(np.ones(6), np.ones(6), np.ones(6)).expected == 1  # intervals are infinite
    with pytest.raises(InfluenceError, match="has an upper bound"):
        Calibration().fit(np.ones(9), np.ones(9), np.full(9, np.inf))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Calibration(level=90.0)


def planted(n=160):
    rng = np.random.default_rng(0)
    exact = np.exp(rng.normal(size=n))
    return rng, exact, exact * 0.99, exact * 1.01


def test_a_perfect_score():
    rng, exact, lower, upper = planted()
    comparison = deviation(exact, lower, upper, rng.uniform(size=len(exact)), Calibration())
    assert comparison.inside.value == 1
    assert comparison.raw.median < 1e-12
    assert (
        comparison.calibrated.p90 < 6e-5
    )  # the calibration's middle of the bounds is the geometric one: 5e-5 off at 1 %
    assert comparison.spearman.value > 1 - 1e-12
    assert comparison.top == comparison.bottom == 1


def test_a_factor_is_removed_and_noise_is_not():
    rng, exact, lower, upper = planted()
    noise = np.exp(0.1 * rng.normal(size=len(exact)))
    comparison = deviation(3 * exact * noise, lower, upper, exact, Calibration())
    assert comparison.inside.value == 0
    np.testing.assert_allclose(comparison.raw.median, 2.0, atol=0.35)
    np.testing.assert_allclose(comparison.calibrated.median, 0.067, atol=0.02)  # the median of |N(0, 0.1²)|
    assert np.isnan(comparison.partial.value)  # the loss given is the exact score itself: nothing is left to know
    assert 0.85 <= comparison.coverage.share <= 1


def test_what_has_no_number_is_left_out():
    rng, exact, lower, upper = planted()
    spoilt = exact.copy()
    spoilt[:5] = np.nan
    spoilt[5] = lower[5] = upper[5] = 0  # nothing over nothing
    comparison = deviation(spoilt, lower, upper, rng.uniform(size=len(exact)), Calibration())
    assert comparison.inside.value == 1
    assert comparison.spearman.value > 1 - 1e-12
    assert np.isfinite([*comparison.raw, *comparison.proportional, *comparison.calibrated]).all()
    assert np.isnan(deviation(exact, exact, exact, exact, Calibration()).inside.value)  # no bounds to lie in


def skewed(count=40):
    """Scores with a bias and noise that is not symmetric, and bounds of one percent."""
    rng = np.random.default_rng(3)
    exact = np.exp(rng.normal(size=count))
    scores = 3 * exact * np.exp(rng.exponential(size=count) ** 2 / 4)
    return scores, exact, 0.995 * exact, 1.005 * exact


def test_one_factor_is_the_median_ratio():
    scores, exact, lower, upper = skewed()
    ratio = scores / exact
    errors = deviation(scores, lower, upper, exact, Calibration()).proportional
    want = np.abs(ratio / np.sort(ratio)[[19, 20]].mean() - 1)
    np.testing.assert_allclose([errors.median, errors.p90], [np.median(want), np.quantile(want, 0.9)], rtol=1e-9)


def test_each_half_is_calibrated_by_the_other():
    scores, exact, lower, upper = skewed()
    calibration = Calibration(form="proportional", seed=4)
    calibrated = deviation(scores, lower, upper, exact, calibration).calibrated
    halves = np.array_split(randomness.generator(4, Stream.HELD_OUT).permutation(40), 2)
    errors = []
    for own, other in (halves, halves[::-1]):
        # Of the other half the first 9 give the radius and the others the factor; bounds are equally wide about the score.
        order = randomness.generator(4, Stream.CALIBRATION).permutation(np.arange(20))[9:]
        middle = np.sqrt(lower * upper)[other][order]
        factor = np.exp(np.median(np.log(middle / scores[other][order])))
        errors.append(np.abs(scores[own] * factor / exact[own] - 1))
    errors = np.concatenate(errors)
    np.testing.assert_allclose(
        [calibrated.median, calibrated.p90], [np.median(errors), np.quantile(errors, 0.9)], rtol=1e-9
    )
