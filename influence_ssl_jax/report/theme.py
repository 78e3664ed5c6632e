"""Matplotlib figures as inline SVG that follows the page: its colours in light and dark, its typeface."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

INK, MUTED, LINE, HIGH, LOW, PAPER = (f"#{digit:02x}0f0{digit:x}" for digit in range(1, 7))
"""Colours that no figure means: each is replaced by the page's own of that name."""
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", HIGH: "high", LOW: "low", PAPER: "paper"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it scales, is selected and read aloud
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar sign in somebody's file name is a dollar sign
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
def themed(width: float, height: float) -> Iterator[Figure]:
    """A figure of `width`×`height` inches in the page's style."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an `<svg>` element; equal figures give equal text.

    Args:
        figure: What to draw.
        name: Unique on the page: the ids inside begin with it.
        description: What the figure shows, for those who hear it.
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
    # coordinates to a hundredth of a point; what stands between tags is text
    text = re.sub(r'(?<=[ "(,])-?\d+\.\d{3,}', lambda number: f"{float(number[0]):.2f}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    return Markup(re.sub(r"<svg ", f'<svg role="img" aria-label="{Markup.escape(description)}" ', text, count=1))
