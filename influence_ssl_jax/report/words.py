"""Numbers as they are printed; what is not a number is a dash."""

import math

from influence_ssl_jax.evaluation.statistics import Estimate


def number(value: float | int | None) -> str:
    """Three significant digits, thousands grouped, and a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (abs(value) >= 1000 and abs(value) < 1e6):
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    return f"{value:#.3g}".rstrip(".").replace("-", "−")


def decimal(value: float) -> str:
    """Three decimals, as columns of shares and probabilities have them."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """A share in percent, with a decimal where it is small."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}\u202f%" if value < 0.0995 else f"{100 * value:.0f}\u202f%"


def interval(estimate: Estimate) -> str:
    """A correlation with its interval."""
    if not math.isfinite(estimate.value):
        return "–"
    text = f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    return text.replace("-", "−").replace("nan", "–")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f}\u202fs"
    minutes = round(seconds / 60)
    return f"{minutes}\u202fmin" if minutes < 120 else f"{minutes // 60}\u202fh {minutes % 60}\u202fmin"
