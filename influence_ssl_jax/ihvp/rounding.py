"""Bound the rounding errors of gradients and of products with C.

A bound of an exact score is a bound of the score in exact arithmetic, at the parameters, pixels and noise as they are
stored. It holds if rounding errors are at most the following, where `u` is the unit roundoff and `k` is the setting
`rounding` (32):

1. The gradient of *one view*, `Jᵀc`, is accurate to `k u` of its own length. The gradient of a score is the
   difference of two such parts. It is smaller if the views are closer, so its relative error grows (measured in
   float32: 4 to 20 u at noise of σ = 0.2, 5,000 u at 0.0002). The lengths of the parts are computed.
2. The embedding of a view is accurate to `k u` of its length, in a random direction. The effect on the gradient is
   measured with two random directions; the larger one counts twice.
3. A product `C x` is accurate to `k u (‖C‖ + λ)‖x‖` plus four times the error that two products with sums show,
   `‖C(v + w) − Cv − Cw‖`. ‖C‖ is taken to be at most twice the result of eight steps of a power iteration.
4. The error of Lanczos' recurrence is measured with four normal vectors (`linalg.quadrature`), which miss an error of
   rank one with a probability of 0.5 %.
5. A row of A (`C = AᵀA`, if certificates are made from rows) is a gradient of that kind, or a sum of them over a
   batch if the loss couples examples: assumptions 1 and 2 hold for every part.

These are measurements and assumptions, not a theorem about floating point. They do not detect an error that has the
same direction in all of them (a constant that is stored wrongly, a compiler that reorders all products in the same
way). `audit --precision float64` makes all of them smaller by nine digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import draw_count, row_parts
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.moments import mean_over_batches
from influence_ssl_jax.linalg.krylov import Rows, largest_eigenvalue
from influence_ssl_jax.losses.alignment import Measurement
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.types import Batch

_POWER_STEPS, _DIRECTIONS = 8, 2


class Lengths(NamedTuple):
    """The lengths of gradients, and bounds of their rounding errors.

    Attributes:
        length: ‖g‖.
        doubt: A bound of ‖δg‖, where δg is the rounding error of g.
    """

    length: Float[Array, " n"]
    doubt: Float[Array, " n"]


def gradient_lengths(measurement: Objective, gradients: ExampleGradients, rounding: float = 32.0) -> Lengths:
    """Measure the lengths of gradients and bound their rounding error.

    The bound uses assumptions 1 and 2 of this module. It costs a gradient for g itself, one for each view and one for
    each of two directions, one after the other.

    Args:
        measurement: The objective of the gradients.
        gradients: The gradients of every example and draw.
        rounding: k.

    Raises:
        TypeError: If the objective is not a measurement.
    """
    loss, network = measurement.loss, gradients.network
    if not isinstance(loss, Measurement):
        raise TypeError(f"Only a measurement has a gradient per example, got {type(loss).__name__}.")
    images, own = gradients.images, gradients.cotangents
    views, unit = images.shape[0], rounding * jnp.finfo(own.dtype).eps
    embedded = measurement.embed(gradients.params, gradients.frozen, images)
    slope = jax.grad(lambda z: jnp.sum(loss.values(loss.outputs(Embeddings(z)))))
    reach = unit * jnp.linalg.norm(embedded, axis=2, keepdims=True) / embedded.shape[2] ** 0.5

    def move(key: Key[Array, ""]) -> Float[Array, "views n width"]:
        return slope(embedded + reach * randomness.normal(key, embedded.shape, embedded.dtype)) - own

    keys = jax.random.split(randomness.root(0, Stream.ROUNDING), _DIRECTIONS)
    alone = own[None] * jnp.eye(views, dtype=own.dtype)[:, :, None, None]
    variants = jnp.concatenate([own[None], alone, jax.vmap(move)(keys)])

    def lengths(example: tuple[Array, Array]) -> Float[Array, " variants"]:
        shown, cotangents = example
        _, backward = jax.vjp(lambda params: network(params, gradients.frozen, shown), gradients.params)
        return jax.lax.map(lambda cotangent: trees.norm(backward(cotangent)[0]), cotangents)

    norms = jax.lax.map(lengths, (jnp.swapaxes(images, 0, 1), jnp.moveaxis(variants, 2, 0))).T
    parts, moves = jnp.sum(norms[1 : 1 + views], axis=0), jnp.max(norms[1 + views :], axis=0)
    return Lengths(norms[0], unit * parts + 2 * moves)


def row_doubt(problem: Problem, samples: int | None, blocks: cut.Blocks, rounding: float = 32.0) -> Float[Array, ""]:
    """Bound the rounding error ‖δA‖ in the Frobenius norm, where `C = AᵀA`.

    The bound uses assumption 5 of this module. It costs the norms of a gradient for each view and for each of two
    directions, over the whole curvature set.

    Args:
        problem: The problem; its curvature is not a Hessian.
        samples: Draws of a `ggn` for each example; None for every output.
        blocks: The blocks.
        rounding: k.
    """
    unit = rounding * float(jnp.finfo(jax.tree.leaves(problem.params)[0].dtype).eps)
    draws, views = draw_count(problem, samples), problem.objective.loss.views

    def of_batch(batch: Batch) -> Float[Array, ""]:
        norms = row_parts(problem, batch, draws, unit, _DIRECTIONS, lambda part: jnp.sqrt(part.squared_norms(blocks)))
        doubt = unit * jnp.sum(norms[:views], axis=0) + 2 * jnp.max(norms[views:], axis=0)
        together = jnp.sum(doubt, axis=1) if _sums_examples(problem) else doubt
        return jnp.sum(together**2) / (draws or 1)

    return jnp.sqrt(mean_over_batches(problem, of_batch))


def _sums_examples(problem: Problem) -> bool:
    """Test whether a row sums over the examples of a batch."""
    return problem.curvature != "empirical_fisher" and not problem.objective.loss.separable


def product_doubt(
    products: Rows, like: Float[Array, " size"], damping: Float[Array, ""], rounding: float = 32.0
) -> Float[Array, ""]:
    """Bound the rounding error of `(C + λI) x` for ‖x‖ = 1.

    The bound uses assumption 3 of this module.

    Args:
        products: V ↦ V C.
        like: Any vector of C's size and type.
        damping: λ.
        rounding: k.
    """
    size = 2 * largest_eigenvalue(products, randomness.root(0, Stream.LARGEST_EIGENVALUE), like, _POWER_STEPS)
    return rounding * jnp.finfo(like.dtype).eps * (size + damping) + 4 * _nonlinearity(products, like)


def _nonlinearity(products: Rows, like: Float[Array, " size"]) -> Float[Array, ""]:
    """Measure `‖C(v + w) − Cv − Cw‖` of random unit vectors, the larger of two.

    It is the effect of rounding on products. If views are nearly equal, a measurement's Jacobian is a small
    difference of large ones, and products lose digits in proportion: the error can be a thousand times what ‖C‖
    suggests.
    """

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        drawn = randomness.normal(key, (2, like.size), like.dtype)
        v, w = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
        both, first, second = products(jnp.stack([v + w, v, w]))
        return jnp.linalg.norm(both - first - second)

    return jnp.max(jax.lax.map(one, jax.random.split(randomness.root(1, Stream.ROUNDING))))
