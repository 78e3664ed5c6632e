"""Second moments over the curvature set: of gradients' features, and of a layer's inputs and output-gradients."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.blocks import Blocks, MatrixBlock
from influence_ssl_jax.curvature.contributions import contributions, draw_batch_gradients, sum_over_draws
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.parallel import devices, sum_over_devices
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Tree = TypeVar("Tree")
Statistic = TypeVar("Statistic")
Sides: TypeAlias = dict[str, tuple[Array, Array]]
"""`A` = mean of ā āᵀ over examples and positions and `S` = Σ s sᵀ over both, [groups, size, size], of every layer.

Were ā and s independent of each other and across positions, A ⊗ S would be the second moment of the layer's gradients
(Grosse & Martens, arXiv 1602.01407, eq. 25–27).
"""

WIDEST = 2**14
"""Rows of the largest Kronecker factor that is taken apart: 1 GiB in float32."""


def mean_over_batches(problem: Problem, of_batch: Callable[[Batch], Tree]) -> Tree:
    """The mean of a tree of arrays over the problem's batches, one batch in memory at a time.

    A `lax.scan`: compiled once whatever the number of batches. That is fast on a CPU too, because there every
    convolution of a network runs in its canonical form (`nets.convolution`), whose backward pass may stand inside a loop.

    Under a mesh every device takes whole batches, so that a loss that couples the examples of a batch is none the wiser,
    and one all-reduce adds up the results. Batches whose every index is −1 fill up the devices and are passed over.
    """
    if devices() == 1:
        total = trees.sum_over(of_batch, problem.batches)
        return jax.tree.map(lambda leaf: leaf / problem.batches.index.shape[0], total)

    def total_of(batches: Batch) -> Tree:
        return trees.sum_over(of_batch, batches, lambda batch: jnp.any(batch.index >= 0))

    count = jnp.sum(jnp.any(problem.batches.index >= 0, axis=1))
    return jax.tree.map(lambda leaf: leaf / count, sum_over_devices(total_of, problem.batches))


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
            return of_gradients(contributions(problem, batch))
        if problem.objective.loss.separable:
            total = sum_over_draws(problem, batch, samples, of_gradients)
        else:
            total = of_trees(draw_batch_gradients(problem, batch, samples))
        return jax.tree.map(lambda leaf: leaf / samples, total)

    return mean_over_batches(problem, of_batch)


def sample_count(problem: Problem, samples: int) -> int:
    """How many curvature samples `sum_over_samples` sums over: the most that the rank of their second moment can be."""
    batches, size = problem.batches.index.shape
    if problem.curvature == "empirical_fisher":
        return batches * size
    return batches * samples * (size if problem.objective.loss.separable else 1)


def side_moments(problem: Problem, blocks: Blocks) -> Sides:
    """The side moments of every example's contribution to the gradient."""
    return mean_over_batches(problem, lambda batch: sides(blocks, contributions(problem, batch)))


def factor_moments(problem: Problem, blocks: Blocks, samples: int) -> Sides:
    """The side moments of curvature samples: Kronecker factors of every layer's block of C.

    A factor holds one example's rows at a time, so what a batch-coupled loss puts between examples is left out of it.
    """
    if problem.curvature == "empirical_fisher":
        return side_moments(problem, blocks)

    def of_batch(batch: Batch) -> Sides:
        total = sum_over_draws(problem, batch, samples, lambda gradients: sides(blocks, gradients))
        return jax.tree.map(lambda leaf: leaf / samples, total)

    return mean_over_batches(problem, of_batch)


def sides(blocks: Blocks, gradients: ExampleGradients) -> Sides:
    """`A` and `S` of every matrix.

    Of a matrix that the network transforms or shares, where the gradient G is no sum over its rows, they are
    `A = E[G Gᵀ] / E‖G‖²` and `S = Σ Gᵀ G`: the same where G is one row's, and of the same trace.

    Raises:
        StructureError: A factor is too large to be taken apart.
    """
    found: Sides = {}
    for block in blocks:
        if not isinstance(block, MatrixBlock):
            continue
        if max(block.inputs, block.outputs) > WIDEST:
            raise StructureError(
                f"A Kronecker factor of {block.name} would be a matrix of {max(block.inputs, block.outputs):,} rows, more "
                f"than {WIDEST:,} can be taken apart in no reasonable time. Use LoGra with random bases, or Diagonal."
            )
        if block.calls(gradients) is None:
            found[block.name] = _whole_sides(block, gradients)
        else:
            a, s = block.rows(gradients)
            found[block.name] = _moment(a) / max(a.shape[0] * a.shape[1], 1), _moment(s)
    return found


def _whole_sides(block: MatrixBlock, gradients: ExampleGradients) -> tuple[Array, Array]:
    """Of gradients that are formed whole."""

    def moments(part: ExampleGradients) -> tuple[Array, Array]:
        whole = block.materialise(part)
        return jnp.einsum("ngio,ngjo->gij", whole, whole), jnp.einsum("ngio,ngip->gop", whole, whole)

    a, s = gradients.sum_examples(moments, (block,))
    traces = jnp.einsum("gii->g", a)[:, None, None]
    return a / jnp.where(traces > 0, traces, 1), s


def _moment(rows: Float[Array, "n positions groups size"]) -> Float[Array, "groups size size"]:
    """`Σ r rᵀ` over examples and positions: of one group as a product of two matrices, which XLA computes sooner."""
    flat = rows.reshape(-1, *rows.shape[2:])
    return (flat[:, 0].T @ flat[:, 0])[None] if flat.shape[1] == 1 else jnp.einsum("rgi,rgj->gij", flat, flat)
