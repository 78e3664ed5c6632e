"""The page: every statement typeset, its verdict, its checks, and one plot for each family, in one file."""

from collections.abc import Sequence

import jax
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from influence_ssl_jax.theory import typeset
from influence_ssl_jax.theory.families import FAMILIES
from influence_ssl_jax.theory.verdict import Verdict

_ENVIRONMENT = Environment(
    loader=PackageLoader("influence_ssl_jax.theory", "templates"),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["prose"] = typeset.prose


def page(verdicts: Sequence[Verdict], draws: int, seed: int) -> str:
    """HTML of the verdicts, by family; families without a verdict are left out.

    Args:
        verdicts: What was run.
        draws: Random instances for each check, for the caption.
        seed: Their seed.
    """
    by_item = {verdict.item.name: verdict for verdict in verdicts}
    sections = []
    with jax.enable_x64(True):
        for family in FAMILIES:
            found = [by_item[item.name] for item in family.items if item.name in by_item]
            if found:
                pictures = [(typeset.picture(plot.draw), plot.caption) for plot in family.plots]
                sections.append({"title": family.title, "verdicts": found, "pictures": pictures})
    checks = [outcome for verdict in verdicts for outcome in verdict.outcomes]
    return _ENVIRONMENT.get_template("theory.html.jinja").render(
        sections=sections,
        verdicts=verdicts,
        checks=len(checks),
        failed=sum(not outcome.passed for outcome in checks),
        draws=draws,
        seed=seed,
    )
