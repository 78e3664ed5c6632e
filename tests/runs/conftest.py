"""What tests of several commands share."""

import functools

import pytest

from influence_ssl_jax.evaluation import calibration


@pytest.fixture
def few_resamples(monkeypatch):
    """Intervals of few resamples: `tests/evaluation` measures those of many, and commands only write them down."""
    monkeypatch.setattr(calibration, "bootstrap", functools.partial(calibration.bootstrap, resamples=10))
    coverage = functools.partialmethod(calibration.Calibration.coverage, splits=4)
    monkeypatch.setattr(calibration.Calibration, "coverage", coverage)
