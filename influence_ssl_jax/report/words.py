"""Write numbers for readers.

A number that is missing or not finite is a dash.
"""

import math

from influence_ssl_jax.evaluation.statistics import Estimate


def number(value: float | int | None) -> str:
    r"""Write a number with three significant digits, and thousands in groups.

    Examples:
        >>> number(12345), number(0.012345), number(None)
        ('12\u202f345', '0.0123', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and abs(value) < 1e6):
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    return f"{value:#.3g}".rstrip(".").replace("-", "−")


def decimal(value: float) -> str:
    """Write a number with three decimals.

    Examples:
        >>> decimal(-0.5)
        '−0.500'
    """
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def percent(value: float) -> str:
    r"""Write a share in percent, with a decimal if it is small.

    Examples:
        >>> percent(0.25), percent(0.025)
        ('25\u202f%', '2.5\u202f%')
    """
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}\u202f%" if value < 0.0995 else f"{100 * value:.0f}\u202f%"


def interval(estimate: Estimate) -> str:
    """Write an estimate with its interval.

    Examples:
        >>> interval(Estimate(-0.5, -0.6, -0.4))
        '−0.50 [−0.60, −0.40]'
    """
    if not math.isfinite(estimate.value):
        return "–"
    text = f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    return text.replace("-", "−").replace("nan", "–")


def duration(seconds: float) -> str:
    r"""Write a duration in seconds, minutes or hours.

    Examples:
        >>> duration(90.0)
        '90\u202fs'
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f}\u202fs"
    minutes = round(seconds / 60)
    return f"{minutes}\u202fmin" if minutes < 120 else f"{minutes // 60}\u202fh {minutes % 60}\u202fmin"
