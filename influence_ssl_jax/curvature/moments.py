"""Second moments over the curvature set: of gradients' features, and of a layer's inputs and output-gradients."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from influence_ssl_jax.curvature.accumulate import mean_over_batches
from influence_ssl_jax.curvature.blocks import Blocks, MatrixBlock
from influence_ssl_jax.curvature.contributions import contributed, own_parts, pooled
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Statistic = TypeVar("Statistic")


def sum_over_samples(
    problem: Problem,
    samples: int,
    of_gradients: Callable[[ExampleGradients], Statistic],
    of_trees: Callable[[Params], Statistic],
) -> Statistic:
    """The expectation of a quadratic statistic `Σ_i q(g_i)` of curvature samples; with `q(g) = g gᵀ` it is C itself.

    The samples are the examples' own contributions for `empirical_fisher`; otherwise draws from N(0, ∇²head) pulled
    back, per example where the loss is separable, over the whole batch where it couples examples: unbiased for all.

    Args:
        problem: Whose curvature.
        samples: Draws per example, or per batch of a coupled loss; not read for `empirical_fisher`.
        of_gradients: `Σ_i q(g_i)` of per-example gradients.
        of_trees: `Σ_i q(g_i)` of whole gradients with a leading axis.
    """

    def of_batch(batch: Batch) -> Statistic:
        if problem.curvature == "empirical_fisher":
            return of_gradients(contributed(problem, batch))
        if problem.objective.loss.separable:
            total = of_gradients(dataclasses.replace(own_parts(problem, batch, samples), draws=1))
        else:
            total = of_trees(pooled(problem, batch, samples))
        return jax.tree.map(lambda leaf: leaf / samples, total)

    return mean_over_batches(problem, of_batch)


def side_moments(
    problem: Problem, blocks: Blocks, gradients_of: Callable[[Batch], ExampleGradients]
) -> dict[str, tuple[Array, Array]]:
    """`A` = mean of ā āᵀ over examples and positions and `S` = Σ s sᵀ over both, [groups, size, size], of every layer.

    Were ā and s independent of each other and across positions, A ⊗ S would be the second moment of the layer's
    gradients (Grosse & Martens, arXiv 1602.01407, eq. 25–27).
    """
    matrices = [block for block in blocks if isinstance(block, MatrixBlock)]

    def of_batch(batch: Batch) -> dict[str, tuple[Array, Array]]:
        gradients = gradients_of(batch)
        rows = {block.name: block.rows(gradients) for block in matrices}
        return {
            name: (
                jnp.einsum("ntgi,ntgj->gij", a, a) / (a.shape[0] * a.shape[1]),
                jnp.einsum("ntgi,ntgj->gij", s, s),
            )
            for name, (a, s) in rows.items()
        }

    return mean_over_batches(problem, of_batch)


def factor_moments(problem: Problem, blocks: Blocks, samples: int) -> dict[str, tuple[Array, Array]]:
    """The side moments of curvature samples: Kronecker factors of every layer's block of C.

    A factor holds one example's rows at a time, so what a batch-coupled loss puts between examples is left out of it.
    """
    if problem.curvature == "empirical_fisher":
        return side_moments(problem, blocks, lambda batch: contributed(problem, batch))
    found = side_moments(problem, blocks, lambda batch: own_parts(problem, batch, samples))
    return {name: (inputs, outputs / samples) for name, (inputs, outputs) in found.items()}
