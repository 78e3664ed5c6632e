"""Average statistics over the curvature set, such as second moments of gradients."""

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
from influence_ssl_jax.parallel import devices, sum_and_gather
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Tree = TypeVar("Tree")
Statistic = TypeVar("Statistic")
Rows = TypeVar("Rows")
Sides: TypeAlias = dict[str, tuple[Array, Array]]
"""Two matrices of every layer, [groups, size, size].

`A` is the mean of ā āᵀ over examples and positions; `S` is Σ s sᵀ over both. If ā and s were independent of each
other and across positions, A ⊗ S would be the second moment of the layer's gradients (Grosse & Martens, arXiv
1602.01407, eq. 25–27).
"""

WIDEST = 2**14
"""The largest number of rows of a Kronecker factor whose eigenvectors are computed: 1 GiB in float32."""


def mean_over_batches(problem: Problem, of_batch: Callable[[Batch], Tree]) -> Tree:
    """Average a tree of arrays over the problem's batches.

    One batch is in memory at a time. The loop is a `lax.scan`, compiled once for any number of batches. It is fast on
    a CPU too, because there every convolution of a network runs in its canonical form (`nets.convolution`), whose
    backward pass may be inside a loop.

    Under a mesh, every device takes whole batches, so a loss that couples the examples of a batch gives the same
    result, and one all-reduce sums the results. Batches whose indices are all −1 fill up the devices and are skipped.

    Args:
        problem: The problem that has the batches.
        of_batch: The tree of one batch.
    """
    return _mean_and_rows(problem, lambda batch: (of_batch(batch), ()))[0]


def _mean_and_rows(problem: Problem, of_batch: Callable[[Batch], tuple[Tree, Rows]]) -> tuple[Tree, Rows]:
    """Average one tree over batches, and collect rows.

    Rows are divided by the root of the number of batches; batches that fill up devices have rows of zeros.
    """
    fill = devices() > 1

    def of_batches(batches: Batch) -> tuple[Tree, Rows]:
        total, rows = trees.sum_and_stack(
            of_batch, batches, (lambda batch: jnp.any(batch.index >= 0)) if fill else None
        )
        return total, trees.flatten_stack(rows)

    total, rows = sum_and_gather(of_batches, problem.batches)
    index = problem.batches.index
    count = jnp.sum(jnp.any(index >= 0, axis=1)) if fill else index.shape[0]
    return jax.tree.map(lambda leaf: leaf / count, total), jax.tree.map(lambda leaf: leaf / count**0.5, rows)


def sum_over_samples(
    problem: Problem,
    samples: int,
    of_gradients: Callable[[ExampleGradients], tuple[Statistic, Rows]],
    of_trees: Callable[[Params], tuple[Statistic, Rows]],
) -> tuple[Statistic, Rows]:
    """Sum a statistic `Σ_i q(g_i)` over curvature samples, and collect rows `r(g_i)`.

    With `q(g) = g gᵀ` the expectation is C itself, and so is that of `Σ_i r_i r_iᵀ` with `r(g) = g`. The samples are
    the examples' own contributions for `empirical_fisher`. Otherwise they are draws from N(0, ∇²head), pulled back to
    the parameters: for each example if the loss is separable, over the whole batch if it couples examples. So the sum
    is unbiased for every loss.

    Args:
        problem: The problem.
        samples: Draws for each example, or for each batch of a coupled loss; not read for `empirical_fisher`.
        of_gradients: `Σ_i q(g_i)` and the rows `r(g_i)`, from per-example gradients.
        of_trees: The same from whole gradients with a leading axis.

    Returns:
        The sum, and all rows along their leading axis: `sample_count` of them, and zeros. r is linear.
    """

    def of_batch(batch: Batch) -> tuple[Statistic, Rows]:
        if problem.curvature == "empirical_fisher":
            return of_gradients(contributions(problem, batch))
        if problem.objective.loss.separable:
            total, rows = sum_over_draws(problem, batch, samples, of_gradients)
        else:
            total, rows = of_trees(draw_batch_gradients(problem, batch, samples))
        return jax.tree.map(lambda leaf: leaf / samples, total), jax.tree.map(lambda leaf: leaf / samples**0.5, rows)

    return _mean_and_rows(problem, of_batch)


def sample_count(problem: Problem, samples: int) -> int:
    """Count the curvature samples that `sum_over_samples` sums over.

    It is an upper bound of the rank of their second moment.
    """
    batches, size = problem.batches.index.shape
    batches -= problem.padding
    if problem.curvature == "empirical_fisher":
        return batches * size
    return batches * samples * (size if problem.objective.loss.separable else 1)


def side_moments(problem: Problem, blocks: Blocks) -> Sides:
    """Compute the side moments of every example's contribution to the gradient."""
    return mean_over_batches(problem, lambda batch: sides(blocks, contributions(problem, batch)))


def factor_moments(problem: Problem, blocks: Blocks, samples: int) -> Sides:
    """Compute side moments of curvature samples: Kronecker factors of layers' C.

    A factor has the rows of one example at a time, so it leaves out what a batch-coupled loss puts between examples.

    Args:
        problem: The problem.
        blocks: The blocks.
        samples: Draws for each example, or for each batch of a coupled loss.
    """
    if problem.curvature == "empirical_fisher":
        return side_moments(problem, blocks)

    def of_batch(batch: Batch) -> Sides:
        total, _ = sum_over_draws(problem, batch, samples, lambda gradients: (sides(blocks, gradients), ()))
        return jax.tree.map(lambda leaf: leaf / samples, total)

    return mean_over_batches(problem, of_batch)


def sides(blocks: Blocks, gradients: ExampleGradients) -> Sides:
    """Compute every matrix's `A` and `S` from a batch's gradients.

    If the network transforms or shares a matrix, its gradient G is not a sum over rows. Then `A = E[G Gᵀ] / E‖G‖²` and
    `S = Σ Gᵀ G`, which agree with the definition if G is that of one row, and have the same trace.

    Raises:
        StructureError: If a factor is too large for its eigenvectors to be computed.
    """
    moments: Sides = {}
    for block in blocks:
        if not isinstance(block, MatrixBlock):
            continue
        if max(block.inputs, block.outputs) > WIDEST:
            raise StructureError(
                f"A Kronecker factor of {block.name} would be a matrix of {max(block.inputs, block.outputs):,} rows; the "
                f"eigenvectors of more than {WIDEST:,} rows take too long. Use LoGra with random bases, or Diagonal."
            )
        if block.calls(gradients) is None:
            moments[block.name] = _whole_sides(block, gradients)
        else:
            a, s = block.rows(gradients)
            moments[block.name] = _moment(a) / max(a.shape[0] * a.shape[1], 1), _moment(s)
    return moments


def _whole_sides(block: MatrixBlock, gradients: ExampleGradients) -> tuple[Array, Array]:
    """Compute `A` and `S` from gradients that are formed whole."""

    def moments(part: ExampleGradients) -> tuple[Array, Array]:
        whole = block.materialise(part)
        return jnp.einsum("ngio,ngjo->gij", whole, whole), jnp.einsum("ngio,ngip->gop", whole, whole)

    a, s = gradients.sum_examples(moments, (block,))
    traces = jnp.einsum("gii->g", a)[:, None, None]
    return a / jnp.where(traces > 0, traces, 1), s


def _moment(rows: Float[Array, "n positions groups size"]) -> Float[Array, "groups size size"]:
    """Compute `Σ r rᵀ` over examples and positions.

    With one group it is a product of two matrices, which XLA computes faster.
    """
    flat = rows.reshape(-1, *rows.shape[2:])
    return (flat[:, 0].T @ flat[:, 0])[None] if flat.shape[1] == 1 else jnp.einsum("rgi,rgj->gij", flat, flat)
