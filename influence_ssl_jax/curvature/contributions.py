"""Compute examples' gradients of an objective: measured, contributed or drawn."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.gradients import ExampleGradients, embed
from influence_ssl_jax.losses.alignment import Measurement
from influence_ssl_jax.losses.loss import Loss
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch, Frozen, Params


def output_samples(
    loss: Loss, outputs: Float[Array, "*outputs"], batch: Batch, samples: int | None
) -> Float[Array, "samples *outputs"]:
    """Draw `w ~ N(0, ∇²head(outputs))`, or return the columns of its square root.

    For a separable loss, an example's draws come from its own key, so they do not depend on the rest of the batch.
    For a batch-coupled loss, they come from the first key of the batch.

    Args:
        loss: The loss, for its head.
        outputs: The outputs at which the Hessian is taken.
        batch: The batch whose keys determine the draws.
        samples: Number of draws. If None, the rows are `S e_j` with `S Sᵀ = ∇²head`, where e_j runs over the
            coordinates of the outputs (of those of one example, for all examples at once, if the loss is separable).
            Their outer products sum to ∇²head itself, without an average.
    """
    if samples is None:
        shape = outputs.shape[1:] if loss.separable else outputs.shape
        units = jnp.eye(math.prod(shape), dtype=outputs.dtype).reshape(-1, *shape)
        noise = jnp.broadcast_to(units[:, None], (len(units), *outputs.shape)) if loss.separable else units
    elif loss.separable:
        keys = jax.vmap(lambda key: jax.random.split(randomness.branch(key, Stream.FISHER), samples), out_axes=1)(
            batch.key
        )
        noise = jax.vmap(jax.vmap(lambda key: randomness.normal(key, outputs.shape[1:], outputs.dtype)))(keys)
    else:
        key = randomness.branch(batch.key[0], Stream.FISHER)
        noise = randomness.normal(key, (samples, *outputs.shape), outputs.dtype)
    return jax.vmap(lambda draw: loss.head_square_root(outputs, draw))(noise)


Statistic = TypeVar("Statistic")
Rows = TypeVar("Rows")


class MeasuredBatch(NamedTuple):
    """The measurement of every example of a batch.

    Attributes:
        gradients: Gradient of every example's value in every draw.
        values: The values `½‖r‖²`.
        degenerate: Marks examples whose measurement is undefined in some draw; their gradient is zero there.
        embeddings: Embeddings of the first view in the first draw.
    """

    gradients: ExampleGradients
    values: Float[Array, "draws batch"]
    degenerate: Bool[Array, " batch"]
    embeddings: Float[Array, "batch embedding"]


def measure(objective: Objective, params: Params, frozen: Frozen, batch: Batch, draws: int = 1) -> MeasuredBatch:
    """Measure every example of a batch `draws` times.

    Draw k of an example uses the k-th key of its own stream.

    Args:
        objective: The network, the views and the measurement.
        params: Parameters.
        frozen: Running statistics.
        batch: The examples.
        draws: Number of draws for each example.

    Raises:
        TypeError: If the objective's loss is not a measurement.
    """
    loss = objective.loss
    if not isinstance(loss, Measurement):
        raise TypeError(f"Only a measurement has a value per example, got {type(loss).__name__}.")
    repeated = _drawn(batch, draws)
    images = objective.images(repeated, jax.tree.leaves(params)[0].dtype)
    z = embed(objective.network, params, frozen, images)

    def total(z: Array) -> tuple[Array, tuple[Array, Array]]:
        embeddings = objective.complete(z, params, frozen, repeated)
        values = loss.values(loss.outputs(embeddings))
        return jnp.sum(values), (values, loss.degenerate(embeddings))

    cotangents, (values, degenerate) = jax.grad(total, has_aux=True)(z)
    gradients = ExampleGradients(params, frozen, images, cotangents, objective.network, draws)
    undefined = jnp.any(degenerate.reshape(draws, -1), axis=0)
    return MeasuredBatch(gradients, values.reshape(draws, -1), undefined, z[0, : batch.index.shape[0]])


def contributions(problem: Problem, batch: Batch) -> ExampleGradients:
    """Return `√b · J_iᵀ ∂loss/∂z_i`, each example's contribution to the batch's gradient.

    The sum of their outer products is the `empirical_fisher` of the batch. For a mean of per-example losses ℓ_i it is
    (1/b) Σ ∇ℓ_i ∇ℓ_iᵀ.
    """
    images, z = _embed_views(problem, batch)
    cotangents = _contributed_cotangents(problem, batch, z)
    return ExampleGradients(problem.params, problem.frozen, images, cotangents, problem.objective.network)


def draw_example_gradients(problem: Problem, batch: Batch, samples: int | None) -> ExampleGradients:
    """Draw `J_iᵀ (∂y/∂z_i)ᵀ w` with w ~ N(0, ∇²head), for each example.

    The sum of their outer products over examples, averaged over draws, has the Gauss–Newton matrix as its
    expectation. If `samples` is None, w is every column of a square root of ∇²head, and the sum over them is that
    matrix itself.

    Args:
        problem: The problem; its loss is separable.
        batch: The examples.
        samples: Number of draws for each example, or None.

    Raises:
        TypeError: If the loss couples the examples of a batch.
    """
    if not problem.objective.loss.separable:
        raise TypeError(
            f"{type(problem.objective.loss).__name__} couples the examples of a batch; use `draw_batch_gradients`."
        )
    images, drawn = _own_parts(problem, batch, samples)
    repeated = jnp.broadcast_to(images[:, None], (images.shape[0], len(drawn), *images.shape[1:]))
    return ExampleGradients(
        problem.params,
        problem.frozen,
        repeated.reshape(images.shape[0], -1, *images.shape[2:]),
        jnp.moveaxis(drawn, 0, 1).reshape(images.shape[0], -1, drawn.shape[-1]),
        problem.objective.network,
        len(drawn),
    )


def sum_over_draws(
    problem: Problem, batch: Batch, samples: int, statistic: Callable[[ExampleGradients], tuple[Statistic, Rows]]
) -> tuple[Statistic, Rows]:
    """Sum a statistic over the draws of a batch, and collect rows.

    The sum is `Σ_k q(g of draw k)` with `g_i = J_iᵀ (∂y/∂z_i)ᵀ w` and w ~ N(0, ∇²head) over the batch. The parts of a
    draw sum over the examples to the draw of `draw_batch_gradients`; if the loss couples examples, the sum of the
    parts' outer products leaves the coupling out. One draw is in memory at a time, so the memory of a fit does not
    grow with the number of draws.

    Args:
        problem: The problem.
        batch: The examples.
        samples: Number of draws.
        statistic: q, and rows to be kept (arrays with a leading axis of examples), from the gradients of one draw.

    Returns:
        The sum, and the rows of all draws along their leading axis.
    """
    images, drawn = _own_parts(problem, batch, samples)

    def of(cotangents: Array) -> tuple[Statistic, Rows]:
        network = problem.objective.network
        return statistic(ExampleGradients(problem.params, problem.frozen, images, cotangents, network))

    total, rows = trees.sum_and_stack(of, drawn)
    return total, trees.flatten_stack(rows)


def row_count(problem: Problem, samples: int | None) -> int:
    """Count the gradients whose outer products sum to C.

    The number is an upper bound of the rank of C.

    Args:
        problem: The problem; its curvature is not a Hessian.
        samples: Draws of a `ggn` for each example (for each batch, if the loss couples examples); None for every
            output.
    """
    number, size = problem.batches.index.shape
    number, units = number - problem.padding, size if problem.objective.loss.separable else 1
    if problem.curvature == "empirical_fisher":
        return number * size
    draws = problem.samples if problem.curvature == "fisher" else samples
    if draws is not None:
        return number * units * draws
    first = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    outputs = jax.eval_shape(lambda batch: problem.objective.outputs(problem.params, problem.frozen, batch), first)
    return number * math.prod(outputs.shape)


def draw_count(problem: Problem, samples: int | None) -> int | None:
    """Return the number of draws that C is an average over.

    Args:
        problem: The problem; its curvature is not a Hessian.
        samples: Draws of a `ggn` for each example; None for every output.

    Returns:
        The number; None if nothing is drawn.
    """
    return {"fisher": problem.samples, "ggn": samples, "empirical_fisher": None}[problem.curvature]


def _own_parts(
    problem: Problem, batch: Batch, samples: int | None
) -> tuple[Float[Array, "views batch height width channels"], Float[Array, "samples views batch embedding"]]:
    """Return the images, and the cotangents of their embeddings in every draw."""
    images, z = _embed_views(problem, batch)
    return images, _drawn_cotangents(problem, batch, samples, z)


def _embed_views(
    problem: Problem, batch: Batch
) -> tuple[Float[Array, "views batch height width channels"], Float[Array, "views batch embedding"]]:
    """Return the views of a batch, and their embeddings."""
    images = problem.objective.images(batch, jax.tree.leaves(problem.params)[0].dtype)
    return images, embed(problem.objective.network, problem.params, problem.frozen, images)


def _drawn_cotangents(
    problem: Problem, batch: Batch, samples: int | None, z: Float[Array, "views batch embedding"]
) -> Float[Array, "samples views batch embedding"]:
    """Compute `(∂y/∂z)ᵀ w` for every draw w of the outputs."""
    loss = problem.objective.loss
    y, backward = jax.vjp(
        lambda z: loss.outputs(problem.objective.complete(z, problem.params, problem.frozen, batch)), z
    )
    return jax.vmap(lambda w: backward(w)[0])(output_samples(loss, y, batch, samples))


def _contributed_cotangents(
    problem: Problem, batch: Batch, z: Float[Array, "views batch embedding"]
) -> Float[Array, "views batch embedding"]:
    """Compute `√b · ∂loss/∂z_i` for every example."""
    objective = problem.objective
    slope = jax.grad(lambda z: objective.loss(objective.complete(z, problem.params, problem.frozen, batch)))
    return slope(z) * z.shape[1] ** 0.5


def draw_batch_gradients(problem: Problem, batch: Batch, samples: int | None) -> Params:
    """Draw `J_yᵀ w` with `w ~ N(0, ∇²head)` over the whole batch, for any loss.

    The mean of their outer products has the batch's Gauss–Newton matrix as its expectation, with the coupling between
    the examples of the batch. The cost is one forward pass, and one backward pass for each draw. If `samples` is
    None, w is every column of a square root of ∇²head, and the sum over them is that matrix itself.

    Returns:
        Whole gradients: leaves [samples, …].
    """
    objective = problem.objective
    y, backward = jax.vjp(lambda params: objective.outputs(params, problem.frozen, batch), problem.params)
    return jax.lax.map(lambda w: backward(w)[0], output_samples(objective.loss, y, batch, samples))


def row_parts(
    problem: Problem,
    batch: Batch,
    samples: int | None,
    reach: float,
    directions: int,
    statistic: Callable[[ExampleGradients], Float[Array, " batch"]],
) -> Float[Array, "variants samples batch"]:
    """Measure parts of a batch's rows, and how changed embeddings change them.

    Args:
        problem: The problem.
        batch: The examples.
        samples: Draws for each example; None if nothing is drawn. Not read for an `empirical_fisher`.
        reach: Length of the change of embeddings, relative to their length.
        directions: Number of random changes.
        statistic: A function of the gradients of one draw: one number for each example.

    Returns:
        The statistic of each view's part of a row, view by view, and of the change for each random direction.
    """
    images, z = _embed_views(problem, batch)

    def cotangents(z: Float[Array, "views batch embedding"]) -> Float[Array, "samples views batch embedding"]:
        if problem.curvature == "empirical_fisher":
            return _contributed_cotangents(problem, batch, z)[None]
        return _drawn_cotangents(problem, batch, samples, z)

    own, views = cotangents(z), z.shape[0]
    step = reach * jnp.linalg.norm(z, axis=2, keepdims=True) / z.shape[2] ** 0.5
    keys = jax.random.split(randomness.root(0, Stream.ROUNDING), directions)
    moved = [cotangents(z + step * randomness.normal(key, z.shape, z.dtype)) - own for key in keys]
    alone = own[None] * jnp.eye(views, dtype=own.dtype)[:, None, :, None, None]
    variants = jnp.concatenate([alone, jnp.stack(moved)])

    def of(cotangents: Float[Array, "views batch embedding"]) -> Float[Array, " batch"]:
        network = problem.objective.network
        return statistic(ExampleGradients(problem.params, problem.frozen, images, cotangents, network))

    return jax.lax.map(of, variants.reshape(-1, *own.shape[1:])).reshape(*variants.shape[:2], -1)


def _drawn(batch: Batch, draws: int) -> Batch:
    """Repeat a batch `draws` times, each time with its own keys."""
    own = jax.vmap(lambda key: randomness.branch(key, Stream.PERTURBATIONS))(batch.key)
    keys = jax.vmap(lambda k: jax.vmap(lambda key: jax.random.fold_in(key, k))(own))(jnp.arange(draws))

    def repeat(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf[None], (draws, *leaf.shape)).reshape(draws * leaf.shape[0], *leaf.shape[1:])

    label = None if batch.label is None else repeat(batch.label)
    return Batch(repeat(batch.image), keys.reshape(-1), repeat(batch.index), label)
