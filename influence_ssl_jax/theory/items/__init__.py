"""Every statement of the theory, by family. The list here is the only one: tests, command, page and notebook read it."""

import dataclasses

from influence_ssl_jax.theory.item import Item
from influence_ssl_jax.theory.items import (
    background,
    cosine,
    cosine_derivatives,
    deviation,
    gauss_newton,
    gaussian,
    groups,
    leave_out,
    leverage,
    linear,
    properties,
    two_layer,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """Statements that belong together.

    Attributes:
        title: Heading.
        items: The statements, in reading order.
    """

    title: str
    items: tuple[Item, ...]


FAMILIES = (
    Family("Influence functions", background.ITEMS),
    Family("The linear encoder", (*two_layer.ITEMS[:2], *linear.ITEMS, two_layer.ITEMS[2])),
    Family("Any encoder", gauss_newton.ITEMS),
    Family("Proposition 1", properties.ITEMS),
    Family("Groups of examples", groups.ITEMS),
    Family("Expectation and deviation", deviation.ITEMS),
    Family("The cosine distance", (*cosine.ITEMS, *cosine_derivatives.ITEMS)),
    Family("The data set's Hessian", leverage.ITEMS),
    Family("Leaving examples out", leave_out.ITEMS),
    Family("Gaussian noise", gaussian.ITEMS),
)

ITEMS: tuple[Item, ...] = tuple(item for family in FAMILIES for item in family.items)
