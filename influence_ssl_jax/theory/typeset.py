"""Formulas as inline SVG: no network, no script, no font to install; drawn by matplotlib's mathtext."""

import html
import io
import re
from collections.abc import Callable

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, TextToPath

_SIZE = 100
_FONT = FontProperties(size=_SIZE, math_fontfamily="cm")
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def formula(tex: str) -> Markup:
    """One formula, on the baseline of the text around it and in its colour.

    Args:
        tex: LaTeX without the dollars, within what mathtext knows (fractions, accents, Greek; no environments).
    """
    # mathtext takes these two superscripts for binary operators and puts space around them.
    drawn = "$" + tex.replace(r"^\top", r"^{\mathrm{T}}").replace("^*", "^{*}") + "$"
    width, height, descent = TextToPath().get_text_width_height_descent(drawn, _FONT, ismath=True)
    strokes = []
    for points, code in TextPath((0, 0), drawn, prop=_FONT).iter_segments(curves=True, simplify=False):
        numbers = "" if code == Path.CLOSEPOLY else " ".join(f"{n:.0f}" for n in points)
        strokes.append(_LETTERS[Path.code_type(code)] + numbers)
    margin = 0.04 * _SIZE
    box = f"{-margin:.0f} {-height + descent - margin:.0f} {width + 2 * margin:.0f} {height + 2 * margin:.0f}"
    size = f"width:{(width + 2 * margin) / _SIZE:.3f}em;height:{(height + 2 * margin) / _SIZE:.3f}em"
    return Markup(
        f'<svg class="math" role="img" aria-label="{html.escape(tex)}" viewBox="{box}" '
        f'style="{size};vertical-align:{-(descent + margin) / _SIZE:.3f}em">'
        f'<path transform="scale(1,-1)" d="{"".join(strokes)}"/></svg>'
    )


def prose(text: str) -> Markup:
    """Text with formulas between dollars. Punctuation stays on the line of the formula before it."""
    pieces = []
    for part in re.split(r"(\$[^$]+\$[.,;:)]*)", text):
        found = re.fullmatch(r"\$([^$]+)\$([.,;:)]*)", part)
        if found is None:
            pieces.append(html.escape(part))
        else:
            pieces.append(f'<span class="formula">{formula(found[1])}{found[2]}</span>')
    return Markup("".join(pieces))


def picture(plot: Callable[[Axes], None]) -> Markup:
    """A plot as inline SVG, its text drawn as paths."""
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 10, "axes.spines.top": False}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.spines["right"].set_visible(False)
        plot(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return Markup(written.getvalue()[written.getvalue().index("<svg") :])
