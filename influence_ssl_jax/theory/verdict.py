"""The verdicts: every item run, and what it found as plain data."""

import dataclasses
import time
from collections.abc import Iterable, Iterator

import jax

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.theory.families import ITEMS
from influence_ssl_jax.theory.item import Item, Outcome


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An item and what its checks found.

    Attributes:
        item: The statement.
        outcomes: One for each check.
        seconds: Wall time, compilation included.
    """

    item: Item
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check bears the item's status out."""
        return all(outcome.passed for outcome in self.outcomes)


def named(names: Iterable[str]) -> tuple[Item, ...]:
    """The items of these names, in the list's order; all of them where no name is given.

    Raises:
        InfluenceError: Where a name is not in the list.
    """
    wanted = set(names)
    unknown = wanted - {item.name for item in ITEMS}
    if unknown:
        known = ", ".join(item.name for item in ITEMS)
        raise InfluenceError(f"There is no item {', '.join(sorted(unknown))} in the theory; there are {known}.")
    return tuple(item for item in ITEMS if not wanted or item.name in wanted)


def judge(items: Iterable[Item], draws: int, seed: int) -> Iterator[Verdict]:
    """Runs the items in float64, each on instances of its own."""
    with jax.enable_x64(True):
        for item in items:
            start = time.perf_counter()
            # The place in the whole list, so that an item sees the same instances alone and among the others.
            outcomes = item.run(jax.random.fold_in(jax.random.key(seed), ITEMS.index(item)), draws)
            yield Verdict(item, outcomes, time.perf_counter() - start)


def plain(verdict: Verdict) -> dict:
    """A verdict as JSON has it."""
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
