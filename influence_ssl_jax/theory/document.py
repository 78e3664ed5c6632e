"""The statements as Markdown: a table of verdicts, then every statement with what it needs, what holds and its checks.

Nothing measured is in it, so it changes only where the list of items does.
"""

from collections.abc import Sequence
from typing import get_args

from influence_ssl_jax.theory.families import FAMILIES, Family
from influence_ssl_jax.theory.item import Check, Item, Origin, Status

_HEAD = """# The theory of Influence-SSL

Every statement behind the score, reconstructed from [arXiv 2412.17170](https://arxiv.org/abs/2412.17170) or derived for
this project, with a verdict and the checks that carry it. Written by `influence-ssl theory --markdown docs/theory.md` from
the list that the tests, the command and the notebook read; `influence-ssl theory` runs the checks.

Scores are magnitudes, $I_\\lambda = +g^\\top (C + \\lambda I)^{-1} g$; the paper's carry a minus sign. Unless said,
$f(x) = Wx$; $a(x) = x + \\varepsilon\\delta$, $l = \\|f(x) - f(a(x))\\|^2$, $t = 2\\varepsilon^2\\|\\delta\\|^2$.
"""


def markdown() -> str:
    """All families, as one document."""
    return "\n".join([_HEAD, *_table(FAMILIES), *(line for family in FAMILIES for line in _section(family))])


def _table(families: Sequence[Family]) -> list[str]:
    rows = [
        f"| [{item.title}](#{item.name}) | {item.origin} | {item.status} | {len(item.all_checks())} |"
        for family in families
        for item in family.items
    ]
    items = [item for family in families for item in family.items]
    return [*_counts(items), "", "| statement | of | verdict | checks |", "|---|---|---|---|", *rows]


def _counts(items: Sequence[Item]) -> list[str]:
    """The verdicts on the paper's statements, and on those that are derived here, which are none of the paper's errors."""

    def counted(origin: Origin) -> str:
        own = [item.status for item in items if item.origin == origin]
        verdicts = ", ".join(f"{own.count(status)} {status}" for status in get_args(Status))
        return f"{len(own)}: {verdicts}"

    return [
        f"Statements of the paper, {counted('paper')}.",
        f"Statements derived here, {counted('derived here')}; one that is false as stated is an expectation that suggests "
        "itself and fails, and no error of the paper's.",
    ]


def _section(family: Family) -> list[str]:
    return [f"\n## {family.title}", *(line for item in family.items for line in _entry(item))]


def _entry(item: Item) -> list[str]:
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
    limit = check.limit
    name = check.name.replace("|", "\\|")
    return f"{name} {limit.symbol} {limit.value:.3g} ({limit.statistic})"
