"""Sums of trees over batches or draws: the one place that chooses how such a loop runs."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from influence_ssl_jax.parallel import devices, sum_over_devices
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch

Tree = TypeVar("Tree")
Item = TypeVar("Item")
LONG = 256
"""Items from which a sum keeps what rounding takes from it: 16,000 positive numbers in float32 lose 6e-6 of it otherwise."""


def mean_over_batches(problem: Problem, of_batch: Callable[[Batch], Tree]) -> Tree:
    """The mean of a tree of arrays over the problem's batches, one batch in memory at a time.

    A `lax.scan`: compiled once whatever the number of batches. That is fast on a CPU too, because there every
    convolution of a network runs in its canonical form (`nets.convolution`), whose backward pass may stand inside a loop.

    Under a mesh every device takes whole batches, so that a loss that couples the examples of a batch is none the wiser,
    and one all-reduce adds up the results. Batches whose every index is −1 fill up the devices and are passed over.
    """
    if devices() == 1:
        total = sum_over(of_batch, problem.batches)
        return jax.tree.map(lambda leaf: leaf / problem.batches.index.shape[0], total)

    def total_of(batches: Batch) -> Tree:
        return sum_over(of_batch, batches, lambda batch: jnp.any(batch.index >= 0))

    count = jnp.sum(jnp.any(problem.batches.index >= 0, axis=1))
    return jax.tree.map(lambda leaf: leaf / count, sum_over_devices(total_of, problem.batches))


def sum_over(
    compute: Callable[[Item], Tree], items: Item, counts: Callable[[Item], Bool[Array, ""]] | None = None
) -> Tree:
    """The sum of a tree of arrays over the leading axis of `items`, one item in memory at a time.

    A sum of LONG items or more is compensated (Kahan): its rounding does not grow with their number, and it takes the memory
    of a second tree.

    Args:
        compute: The tree of one item.
        items: A tree of arrays with one leading axis.
        counts: Whether an item is computed at all; every one is where None.
    """
    first = jax.tree.map(lambda leaf: leaf[0], items)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, first))

    def add(pair: tuple[Tree, Tree], item: Item) -> tuple[Tree, Tree]:
        total, lost = pair
        if not long:
            return jax.tree.map(jnp.add, total, compute(item)), lost
        part = jax.tree.map(jnp.subtract, compute(item), lost)
        new = jax.tree.map(jnp.add, total, part)
        return new, jax.tree.map(lambda new, old, part: (new - old) - part, new, total, part)

    def step(pair: tuple[Tree, Tree], item: Item) -> tuple[tuple[Tree, Tree], None]:
        if counts is None:
            return add(pair, item), None
        return jax.lax.cond(counts(item), lambda: add(pair, item), lambda: pair), None

    long = jax.tree.leaves(items)[0].shape[0] >= LONG
    return jax.lax.scan(step, (zero, zero if long else jax.tree.map(lambda _: None, zero)), items)[0][0]
