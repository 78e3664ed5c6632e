"""Errors of a score against certified bounds, worked out by hand: one factor, two halves, the far end of a bound."""

import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import randomness
from influence_ssl_jax.evaluation.calibration import Calibration, deviation
from influence_ssl_jax.evaluation.certificate import _combined
from influence_ssl_jax.randomness import Stream


def skewed(count=40):
    """Scores with a bias and noise that is not symmetric, and bounds of one percent."""
    rng = np.random.default_rng(3)
    exact = np.exp(rng.normal(size=count))
    scores = 3 * exact * np.exp(rng.exponential(size=count) ** 2 / 4)
    return scores, exact, 0.995 * exact, 1.005 * exact


def test_one_factor_is_the_median_ratio():
    scores, exact, lower, upper = skewed()
    ratio = scores / exact
    found = deviation(scores, lower, upper, exact, Calibration()).proportional
    want = np.abs(ratio / np.sort(ratio)[[19, 20]].mean() - 1)
    np.testing.assert_allclose([found.median, found.p90], [np.median(want), np.quantile(want, 0.9)], rtol=1e-9)


def test_each_half_is_calibrated_by_the_other():
    scores, exact, lower, upper = skewed()
    calibration = Calibration(form="proportional", seed=4)
    found = deviation(scores, lower, upper, exact, calibration).calibrated
    halves = np.array_split(randomness.generator(4, Stream.HELD_OUT).permutation(40), 2)
    errors = []
    for own, other in (halves, halves[::-1]):
        # The factor is that of the first half of the other half; bounds are equally wide about the exact score.
        order = randomness.generator(4, Stream.CALIBRATION).permutation(np.arange(20))[:10]
        middle = np.sqrt(lower * upper)[other][order]
        factor = np.exp(np.median(np.log(middle / scores[other][order])))
        errors.append(np.abs(scores[own] * factor / exact[own] - 1))
    errors = np.concatenate(errors)
    np.testing.assert_allclose([found.median, found.p90], [np.median(errors), np.quantile(errors, 0.9)], rtol=1e-9)


def test_bounds_of_a_difference_take_the_far_ends():
    """Of two draws and their mean: `2 · form of the mean − mean of the forms`, each form known to an interval."""
    lower, upper = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[3.0], [6.0], [5.0]])
    found = _combined(lower, upper, "u_statistic")
    np.testing.assert_allclose([float(side[0]) for side in found], [2 * 4 - 4.5, 2 * 5 - 1.5])
    low, high = _combined(lower[:2], upper[:2], "mean_of_scores")
    assert (float(low[0]), float(high[0])) == (1.5, 4.5)
