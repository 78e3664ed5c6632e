"""Numbers on the page."""

from influence_ssl_jax.evaluation.statistics import Estimate
from influence_ssl_jax.report.words import decimal, duration, interval, number, percent


def test_numbers_as_they_are_printed():
    assert [number(v) for v in (None, float("nan"), 0, 1234567, -0.01234, 48.0, 2500.0)] == [
        "–", "–", "0", "1\u202f234\u202f567", "−0.0123", "48.0", "2\u202f500",
    ]  # fmt: skip
    assert [percent(v) for v in (0.0123, 0.5, float("nan"))] == ["1.2\u202f%", "50\u202f%", "–"]
    assert [duration(v) for v in (3.4, 600.0, 7300.0, float("nan"))] == [
        "3\u202fs",
        "10\u202fmin",
        "2\u202fh 2\u202fmin",
        "–",
    ]
    assert interval(Estimate(-0.5, -0.6, -0.4)) == "−0.50 [−0.60, −0.40]"
    assert decimal(-0.0012) == "−0.001"
