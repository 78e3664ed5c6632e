"""List every statement of the theory by family, and run the checks.

Tests, command, page and notebook read this one list.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from matplotlib.axes import Axes

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.theory import (
    background,
    cosine,
    deviation,
    gauss_newton,
    gaussian,
    groups,
    leave_out,
    leverage,
    linear,
    plots,
    properties,
    two_layer,
)
from influence_ssl_jax.theory.item import Item, Outcome


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture of a family.

    Attributes:
        draw: The function that draws it.
        caption: What it shows, with LaTeX between dollars.
    """

    draw: Callable[[Axes], None]
    caption: str


@dataclasses.dataclass(frozen=True)
class Family:
    """Statements that belong together.

    Attributes:
        title: Heading.
        items: The statements, in reading order.
        plots: Their pictures.
    """

    title: str
    items: tuple[Item, ...]
    plots: tuple[Plot, ...]


FAMILIES = (
    Family(
        "Influence functions",
        background.ITEMS,
        (Plot(plots.remainder, "What the first order of Eq. 3 leaves out falls with the square of the weight."),),
    ),
    Family(
        "The linear encoder",
        (*two_layer.ITEMS[:2], *linear.ITEMS, two_layer.ITEMS[2]),
        (
            Plot(
                plots.limit_gap,
                r"Theorem 1 for $w_1 = 2$, $w_2 = 1$, $\delta = \varepsilon = 1$. The limit $2\,l$ is reached only where "
                r"$\lambda \ll t$; with the exact two-layer Hessian it is $\frac{4}{3}\,l$, and there is a pole.",
            ),
        ),
    ),
    Family(
        "Any encoder",
        gauss_newton.ITEMS,
        (
            Plot(
                plots.any_encoder,
                r"A tanh network: with a point's own Gauss–Newton matrix the score tends to $2\,l$, twice its loss.",
            ),
        ),
    ),
    Family(
        "Proposition 1",
        properties.ITEMS,
        (
            Plot(plots.exponent, r"Claim 3: the power of $\varepsilon$ is $4$ under strong damping, $2$ without."),
            Plot(plots.violation, "Claim 4: where the change of $W$ is large the stated bound fails."),
        ),
    ),
    Family(
        "Groups of examples",
        groups.ITEMS,
        (
            Plot(
                plots.interaction,
                r"Claims 6 and 7 for $W = \mathrm{diag}(2, 1)$ and two unit perturbations, one along the top singular "
                "vector: duplicates reach the bound.",
            ),
        ),
    ),
    Family(
        "Expectation and deviation",
        deviation.ITEMS,
        (Plot(plots.reliability, "How well a scoring with $K$ draws agrees with another of its kind."),),
    ),
    Family(
        "The cosine distance",
        cosine.ITEMS,
        (Plot(plots.expansion, r"Proposition 3 as stated keeps its error however small $\varepsilon$ is."),),
    ),
    Family(
        "The data set's Hessian",
        leverage.ITEMS,
        (
            Plot(
                plots.duplicates,
                "Score of each of $k$ copies. Theorem 1 does not depend on copies; leverage falls to $1/k$.",
            ),
        ),
    ),
    Family(
        "Leaving examples out",
        leave_out.ITEMS,
        (Plot(plots.shortfall, "By how much influence underestimates what removing an example does to its loss."),),
    ),
    Family(
        "Gaussian noise",
        gaussian.ITEMS,
        (
            Plot(
                plots.estimators,
                r"Scoring a gradient averaged over $K$ draws, with $A = aI$: with few draws the score is mostly noise.",
            ),
        ),
    ),
)

ITEMS: tuple[Item, ...] = tuple(item for family in FAMILIES for item in family.items)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An item and the results of its checks.

    Attributes:
        item: The statement.
        outcomes: One for each check.
        seconds: Wall time, with compilation.
    """

    item: Item
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check supports the item's status."""
        return all(outcome.passed for outcome in self.outcomes)


def select_items(names: Iterable[str]) -> tuple[Item, ...]:
    """Return the items of these names, in the list's order.

    It returns all items if no name is given.

    Raises:
        InfluenceError: A name is not in the list.
    """
    wanted = set(names)
    unknown = wanted - {item.name for item in ITEMS}
    if unknown:
        known = ", ".join(item.name for item in ITEMS)
        raise InfluenceError(f"There is no item {', '.join(sorted(unknown))} in the theory; there are {known}.")
    return tuple(item for item in ITEMS if not wanted or item.name in wanted)


def run_checks(items: Iterable[Item], draws: int, seed: int) -> Iterator[Verdict]:
    """Run the items' checks in float64, each on its own instances.

    Args:
        items: The items.
        draws: Instances for each check.
        seed: The seed of the instances.

    Yields:
        The verdict of each item.
    """
    with jax.enable_x64(True):
        for item in items:
            start = time.perf_counter()
            # The key depends on the place in the whole list: an item has the same instances alone and among others.
            outcomes = item.run(jax.random.fold_in(jax.random.key(seed), ITEMS.index(item)), draws)
            yield Verdict(item, outcomes, time.perf_counter() - start)


def as_json(verdict: Verdict) -> dict:
    """Convert a verdict to JSON."""
    item = verdict.item
    return {
        "item": item.name,
        "title": item.title,
        "source": item.source,
        "origin": item.origin,
        "status": item.status,
        "statement": item.statement,
        "conditions": item.conditions,
        "correction": item.correction,
        "counter_example": None if item.counter_example is None else item.counter_example.instance,
        "passed": verdict.passed,
        "seconds": round(verdict.seconds, 3),
        "checks": [
            {
                "name": outcome.name,
                "statistic": outcome.limit.statistic,
                "value": outcome.statistic,
                "relation": outcome.limit.symbol,
                "limit": outcome.limit.value,
                "draws": outcome.draws,
                "passed": outcome.passed,
            }
            for outcome in verdict.outcomes
        ],
    }
