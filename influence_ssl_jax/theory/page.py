"""Write the statements and their verdicts as HTML or Markdown.

The HTML page is one file, with typeset formulas and plots.
"""

import functools
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import get_args

import jax
import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, TextToPath

from influence_ssl_jax.theory.families import FAMILIES, Family, Verdict
from influence_ssl_jax.theory.item import Check, Item, Origin, Status

_SIZE = 100
_FONT = FontProperties(size=_SIZE, math_fontfamily="cm")
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
_HEAD = """# The theory of Influence-SSL

Every statement behind the score, reconstructed from [arXiv 2412.17170](https://arxiv.org/abs/2412.17170) or derived for
this project, with a verdict and the checks that support it. Written by `influence-ssl theory --markdown docs/theory.md` from
the list that the tests, the command and the notebook read; `influence-ssl theory` runs the checks.

Scores are magnitudes, $I_\\lambda = +g^\\top (C + \\lambda I)^{-1} g$; the paper's carry a minus sign. If not stated
otherwise, $f(x) = Wx$; $a(x) = x + \\varepsilon\\delta$, $l = \\|f(x) - f(a(x))\\|^2$, $t = 2\\varepsilon^2\\|\\delta\\|^2$.
"""


def page(verdicts: Sequence[Verdict], draws: int, seed: int) -> str:
    """Return an HTML page of the verdicts, by family.

    Families without a verdict are left out.

    Args:
        verdicts: The verdicts.
        draws: Random instances for each check, for the caption.
        seed: The seed of the instances, for the caption.
    """
    by_item = {verdict.item.name: verdict for verdict in verdicts}
    sections = []
    with jax.enable_x64(True):
        for family in FAMILIES:
            verdicts = [by_item[item.name] for item in family.items if item.name in by_item]
            if verdicts:
                pictures = [(picture(plot.draw), plot.caption) for plot in family.plots]
                sections.append({"title": family.title, "verdicts": verdicts, "pictures": pictures})
    checks = [outcome for verdict in verdicts for outcome in verdict.outcomes]
    return (
        _environment()
        .get_template("theory.html.jinja")
        .render(
            sections=sections,
            verdicts=verdicts,
            checks=len(checks),
            failed=sum(not outcome.passed for outcome in checks),
            draws=draws,
            seed=seed,
        )
    )


def markdown() -> str:
    """Return all families as one Markdown document, without measured numbers.

    It has a table of verdicts, then every statement with its conditions, what holds, and its checks.
    """
    return "\n".join([_HEAD, *_table(FAMILIES), *(line for family in FAMILIES for line in _section(family))])


def _table(families: Sequence[Family]) -> list[str]:
    """Return the table of verdicts."""
    rows = [
        f"| [{item.title}](#{item.name}) | {item.origin} | {item.status} | {len(item.all_checks())} |"
        for family in families
        for item in family.items
    ]
    items = [item for family in families for item in family.items]
    return [*_counts(items), "", "| statement | of | verdict | checks |", "|---|---|---|---|", *rows]


def _counts(items: Sequence[Item]) -> list[str]:
    """Count the verdicts on the paper's statements and on those derived here.

    If one of the latter is false, the paper is not wrong.
    """

    def count(origin: Origin) -> str:
        own = [item.status for item in items if item.origin == origin]
        verdicts = ", ".join(f"{own.count(status)} {status}" for status in get_args(Status))
        return f"{len(own)}: {verdicts}"

    return [
        f"Statements of the paper, {count('paper')}.",
        f"Statements derived here, {count('derived here')}; one that is false as stated is a plausible "
        "expectation that fails, not an error of the paper.",
    ]


def _section(family: Family) -> list[str]:
    """Return the lines of a family."""
    return [f"\n## {family.title}", *(line for item in family.items for line in _entry(item))]


def _entry(item: Item) -> list[str]:
    """Return the lines of an item."""
    example = "" if item.counter_example is None else item.counter_example.instance
    holds = "And" if item.status == "true" else "What holds"
    parts = (("Conditions", item.conditions), (holds, item.correction), ("Counter-example", example))
    return [
        f'\n### <a id="{item.name}"></a>{item.title}',
        f"\n{item.source}. Verdict: **{item.status}**.",
        f"\n> {item.statement}\n",
        *(f"- *{name}.* {text}" for name, text in parts if text),
        "\nChecked:\n",
        *(f"- {_check(check)}" for check in item.all_checks()),
    ]


def _check(check: Check) -> str:
    """Describe a check in a line."""
    limit = check.limit
    name = check.name.replace("|", "\\|")
    return f"{name} {limit.symbol} {limit.value:.3g} ({limit.statistic})"


def formula(tex: str) -> Markup:
    """Draw a formula as inline SVG by matplotlib's mathtext.

    No network, script or font is needed. It stands on the baseline of the text around it, in the colour of that text.

    Args:
        tex: LaTeX without the dollars, within what mathtext knows (fractions, accents, Greek; no environments).
    """
    # mathtext reads these two superscripts as binary operators and puts space around them.
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
    """Convert text with formulas between dollars to HTML.

    Punctuation stays on the line of the formula before it.
    """
    pieces = []
    for part in re.split(r"(\$[^$]+\$[.,;:)]*)", text):
        match = re.fullmatch(r"\$([^$]+)\$([.,;:)]*)", part)
        if match is None:
            pieces.append(html.escape(part))
        else:
            pieces.append(f'<span class="formula">{formula(match[1])}{match[2]}</span>')
    return Markup("".join(pieces))


def picture(plot: Callable[[Axes], None]) -> Markup:
    """Draw a plot as inline SVG, with its text as paths."""
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


@functools.cache
def _environment() -> Environment:
    """Return the templates of the page."""
    environment = Environment(
        loader=PackageLoader("influence_ssl_jax.theory", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment
