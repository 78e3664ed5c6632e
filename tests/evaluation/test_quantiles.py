"""Quantiles of pieces against NumPy's of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax.evaluation.quantiles import quantiles

SHARES = [0.0, 0.1, 0.25, 0.5, 0.95, 1.0]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=40),
    st.integers(1, 5),
)
@settings(max_examples=20)
def test_pieces_have_the_quantiles_of_the_whole(numbers, pieces):
    whole = np.array(numbers)
    np.testing.assert_array_equal(quantiles(lambda: np.array_split(whole, pieces), SHARES), np.quantile(whole, SHARES))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_many_numbers_and_ties(scale):
    whole = np.round(np.exp(scale * np.random.default_rng(0).normal(size=5_000)), 1)
    np.testing.assert_array_equal(quantiles(lambda: np.array_split(whole, 7), SHARES), np.quantile(whole, SHARES))


def test_no_numbers_have_no_quantiles():
    assert np.isnan(quantiles(lambda: [np.zeros(0)], SHARES)).all()
