"""The loop over the batches of a curvature set: the one place that chooses how it runs."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from influence_ssl_jax.parallel import devices, sum_over_devices
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch

Tree = TypeVar("Tree")


def mean_over_batches(problem: Problem, of_batch: Callable[[Batch], Tree]) -> Tree:
    """The mean of a tree of arrays over the problem's batches, one batch in memory at a time.

    A `lax.scan`: compiled once whatever the number of batches. That is fast on a CPU too, because there every
    convolution of a network runs in its canonical form (`nets.convolution`), whose backward pass may stand inside a loop.

    Under a mesh every device takes whole batches, so that a loss that couples the examples of a batch is none the wiser,
    and one all-reduce adds up the results. Batches whose every index is −1 fill up the devices and are passed over.
    """
    first = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_batch, first))

    def add(total: Tree, batch: Batch) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_batch(batch)), None

    if devices() == 1:
        total, _ = jax.lax.scan(add, zero, problem.batches)
        return jax.tree.map(lambda leaf: leaf / problem.batches.index.shape[0], total)

    def total_of(batches: Batch) -> Tree:
        def add_real(total: Tree, batch: Batch) -> tuple[Tree, None]:
            return jax.lax.cond(jnp.any(batch.index >= 0), lambda: add(total, batch), lambda: (total, None))

        return jax.lax.scan(add_real, zero, batches)[0]

    count = jnp.sum(jnp.any(problem.batches.index >= 0, axis=1))
    return jax.tree.map(lambda leaf: leaf / count, sum_over_devices(total_of, problem.batches))
