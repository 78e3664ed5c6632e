"""Draw the plots of the report in one theme."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from influence_ssl_jax.report.analysis import Comparison, kinds, members
from influence_ssl_jax.report.scored_run import ScoredRun

INK, MUTED, LINE, HIGH, LOW, PAPER = (f"#{digit:02x}0f0{digit:x}" for digit in range(1, 7))
"""Placeholders of colours; `to_svg` replaces each by the colour of that name in the page."""
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", HIGH: "high", LOW: "low", PAPER: "paper"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, so that it scales, can be selected, and is read aloud
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar sign in a file name does not begin a formula
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def theme(width: float, height: float) -> Iterator[Figure]:
    """Make a figure of `width`×`height` inches in the style of the page."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an `<svg>` element; equal figures give equal text.

    Args:
        figure: The figure.
        name: A name that is unique on the page; the ids inside the element begin with it.
        description: What the figure shows, for screen readers.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, **_STYLE}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    # Coordinates are rounded to a hundredth of a point; text between tags is not.
    text = re.sub(r'(?<=[ "(,])-?\d+\.\d{3,}', lambda number: f"{float(number[0]):.2f}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    return Markup(re.sub(r"<svg ", f'<svg role="img" aria-label="{Markup.escape(description)}" ', text, count=1))


MANY = 1200
"""Largest number of examples that are drawn as points; more are drawn as hexagons."""
WIDE = 20.0
"""Ratio of the 99th to the 1st percentile above which positive values have a logarithmic axis."""


def is_wide(values: Float[np.ndarray, " examples"]) -> bool:
    """Test whether values need a logarithmic axis.

    They do if they are positive and spread by more than `WIDE`.

    Examples:
        >>> import numpy as np
        >>> is_wide(np.asarray([1.0, 10.0, 1000.0])), is_wide(np.asarray([-1.0, 1000.0]))
        (True, False)
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() <= 0:
        return False
    low, high = np.quantile(finite, [0.01, 0.99])
    return bool(high > WIDE * low)


def distribution(run: ScoredRun, tail: int) -> Markup:
    """Draw a histogram of the scores, with the tails in their colours."""
    values = run.score[run.ranking()]
    wide = is_wide(values)
    edges = np.histogram_bin_edges(np.log10(values) if wide else values, bins=min(60, max(8, len(values) // 12)))
    if wide:
        edges = 10**edges
        edges[[0, -1]] = values[-1], values[0]  # rounded powers would leave the extremes out
    with theme(5.4, 3.1) as figure:
        axes = figure.subplots()
        for part, colour in ((values, MUTED), (values[:tail], HIGH), (values[-tail:], LOW)):
            axes.hist(part, bins=edges.tolist(), color=colour, alpha=0.45 if colour == MUTED else 1.0)
        _set_log_scale(axes, wide, False)
        axes.set(xlabel="influence score", ylabel="examples")
        return to_svg(figure, "distribution", "Histogram of the influence scores")


def uncertainty(run: ScoredRun) -> Markup | None:
    """Draw the scores by rank with two standard errors.

    It is None if there are no errors.
    """
    rows = run.ranking()
    if "score_se" not in run.table.column_names or not np.isfinite(run.numbers("score_se")[rows]).any():
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, 160).astype(int))]
    values, errors = run.score[rows], run.numbers("score_se")[rows]
    wide = is_wide(run.score)
    low = np.maximum(values - 2 * errors, values.min() / 3) if wide else values - 2 * errors
    place = np.linspace(0, 100, len(rows))
    with theme(5.4, 3.1) as figure:
        axes = figure.subplots()
        axes.vlines(place, low, values + 2 * errors, color=MUTED, alpha=0.4, linewidth=1.4)
        axes.plot(place, values, color=INK, linewidth=1.3)
        _set_log_scale(axes, False, wide)
        axes.set(xlabel="rank, in percent from the highest", ylabel="score ± 2 standard errors", xlim=(-1, 101))
        return to_svg(figure, "uncertainty", "Scores in order of rank with two standard errors")


def scatter(run: ScoredRun, comparison: Comparison) -> Markup:
    """Draw the score over a baseline."""
    left, right = run.numbers(comparison.column), run.score
    kept = np.isfinite(left) & np.isfinite(right)
    left, right = left[kept], right[kept]
    wide = is_wide(left), is_wide(right)
    with theme(5.4, 3.5) as figure:
        axes = figure.subplots()
        if len(left) <= MANY:
            axes.plot(left, right, "o", markersize=3, color=INK, alpha=0.32, markeredgewidth=0)
        else:
            _hexagons(axes, left, right, wide)
        _set_log_scale(axes, *wide)
        axes.set(xlabel=comparison.name, ylabel="influence score")
        return to_svg(figure, f"against-{comparison.column}", f"Influence score against {comparison.name}")


def _hexagons(axes: Axes, left: np.ndarray, right: np.ndarray, wide: tuple[bool, bool]) -> None:
    """Draw counts as hexagons of one colour, whose opacity is the count."""
    scales: list[Literal["linear", "log"]] = ["log" if w else "linear" for w in wide]
    drawn = axes.hexbin(left, right, gridsize=34, mincnt=1, linewidths=0.2, xscale=scales[0], yscale=scales[1])
    counts = np.asarray(drawn.get_array(), float)
    shade = 0.12 + 0.88 * np.log1p(counts) / np.log1p(counts.max())
    drawn.set_array(None)
    drawn.set_facecolor([(*_rgb(INK), alpha) for alpha in np.round(shade, 2)])
    drawn.set_edgecolor("none")


def _rgb(colour: str) -> tuple[float, float, float]:
    """Return red, green and blue in [0, 1] of a colour `#rrggbb`."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue


def by_kind(run: ScoredRun) -> Markup | None:
    """Draw the scores of each planted kind as dots.

    It is None if nothing was planted.
    """
    names = ["none", *kinds(run)]
    if len(names) == 1:
        return None
    generator = np.random.default_rng(0)  # for jitter, so that dots do not hide each other
    with theme(6.8, 0.46 * len(names) + 0.7) as figure:
        axes = figure.subplots()
        for place, kind in enumerate(reversed(names)):
            values = run.score[members(run, kind) & np.isfinite(run.score)]
            drawn = generator.permutation(values)[:400]
            height = place + generator.uniform(-0.26, 0.26, len(drawn))
            colour = MUTED if kind == "none" else HIGH
            axes.plot(drawn, height, "o", markersize=3, color=colour, alpha=0.5, markeredgewidth=0)
            if len(values):
                axes.plot([np.median(values)] * 2, [place - 0.36, place + 0.36], color=INK, linewidth=1.6)
        _set_log_scale(axes, is_wide(run.score), False)
        axes.set_yticks(range(len(names)), [_kind_name(kind) for kind in reversed(names)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set(xlabel="influence score (bar: median)", ylim=(-0.6, len(names) - 0.4))
        axes.grid(axis="x", color=LINE)
        return to_svg(figure, "by-kind", "Influence scores of each planted kind")


def _kind_name(kind: str) -> str:
    """Return the label of a kind."""
    return "not planted" if kind == "none" else kind.replace("_", " ")


def _set_log_scale(axes: Axes, x: bool, y: bool) -> None:
    """Make the chosen axes logarithmic."""
    for wanted, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if wanted:
            scale("log")
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_major_formatter(FuncFormatter(_power))
            axis.set_minor_locator(NullLocator())


def _power(value: float, _: int) -> str:
    """Write a power of ten, as a plain number if short."""
    exponent = round(np.log10(value))
    return f"{value:g}" if -3 <= exponent <= 4 else "10" + str(exponent).translate(_SUPERSCRIPT)


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
