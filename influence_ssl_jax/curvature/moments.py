"""Second moments over the curvature set: of projected gradients, and of a layer's inputs and output-gradients."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.accumulate import mean_over_batches
from influence_ssl_jax.curvature.blocks import Blocks, MatrixBlock
from influence_ssl_jax.curvature.contributions import contributed, pooled, sampled
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Rows = dict[str, Float[Array, "n features"]]
Moments = dict[str, Float[Array, "features features"]]


def curvature_moments(
    problem: Problem,
    samples: int,
    project: Callable[[ExampleGradients], Rows],
    project_trees: Callable[[Params], Rows],
    blocks: Blocks,
) -> tuple[Moments, dict[str, Float[Array, ""]]]:
    """Per block: the second moment of projected curvature samples, an estimate of `Bᵀ C B`, and that of tr(C).

    The samples are the examples' own contributions for `empirical_fisher`; draws from N(0, ∇²head) pulled back otherwise,
    per example where the loss is separable, over the whole batch where it couples examples.

    Args:
        problem: Whose curvature.
        samples: Draws per example, or per batch of a coupled loss; not read for `empirical_fisher`.
        project: Features of per-example gradients, block by block.
        project_trees: Features of whole gradients with a leading axis, block by block.
        blocks: The layers.
    """

    def of_batch(batch: Batch) -> tuple[Moments, dict[str, Float[Array, ""]]]:
        if problem.curvature == "empirical_fisher":
            gradients, weight = contributed(problem, batch), 1.0
        elif problem.objective.loss.separable:
            gradients, weight = sampled(problem, batch, samples), 1 / samples
        else:
            trees = pooled(problem, batch, samples)
            rows = project_trees(trees)
            traces = {block.name: jnp.sum(jax.vmap(block.read)(trees) ** 2) / samples for block in blocks}
            return {name: row.T @ row / samples for name, row in rows.items()}, traces
        single = dataclasses.replace(gradients, draws=1)
        traces = {block.name: weight * jnp.sum(block.gram(single)) for block in blocks}
        return {name: weight * row.T @ row for name, row in project(gradients).items()}, traces

    return mean_over_batches(problem, of_batch)


def side_moments(problem: Problem, blocks: Blocks) -> dict[str, tuple[Array, Array]]:
    """Second moments `Σ ā āᵀ`, `Σ s sᵀ` of every layer, [groups, size, size], of the loss's own contributions."""
    matrices = [block for block in blocks if isinstance(block, MatrixBlock)]

    def of_batch(batch: Batch) -> dict[str, tuple[Array, Array]]:
        rows = {block.name: block.rows(contributed(problem, batch)) for block in matrices}
        return {
            name: (jnp.einsum("ntgi,ntgj->gij", a, a), jnp.einsum("ntgi,ntgj->gij", s, s))
            for name, (a, s) in rows.items()
        }

    return mean_over_batches(problem, of_batch)
