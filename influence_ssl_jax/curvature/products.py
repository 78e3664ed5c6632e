"""Multiply by a curvature matrix without forming it, and estimate its trace."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import output_samples
from influence_ssl_jax.curvature.gradients import forward_mode
from influence_ssl_jax.curvature.moments import mean_over_batches
from influence_ssl_jax.linalg.krylov import Rows
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Matvec: TypeAlias = Callable[[Params], Params]


def matvec(problem: Problem) -> Matvec:
    """Return the map v ↦ C v of a problem.

    `C` is the mean over the problem's batches. The memory is that of one batch, and the map is compiled once for any
    number of batches.

    Args:
        problem: The objective, its parameters, its data and the kind of curvature.

    Returns:
        A linear, self-adjoint function on trees of the structure of `problem.params`. It may be called under `jit`
        and `vmap`.
    """
    return _multiply(problem, lambda batch, vector: _product(problem, batch)(vector))


def block_matvec(problem: Problem) -> Matvec:
    """Return the map V ↦ C V of several vectors.

    The leaves have a leading axis. Every batch is linearised once for all vectors, so each vector costs one tangent
    and one cotangent pass, and no forward pass. The memory is that of one batch and one vector at a time, beside the
    vectors themselves.
    """
    return _multiply(problem, lambda batch, vectors: jax.lax.map(_product(problem, batch), vectors))


def _multiply(problem: Problem, of_batch: Callable[[Batch, Params], Params]) -> Matvec:
    """Return the mean over batches of a product with each."""

    def product(vector: Params) -> Params:
        with forward_mode():
            return mean_over_batches(problem, lambda batch: of_batch(batch, vector))

    return product


def flat_products(problem: Problem) -> Rows:
    """Return the map `V ↦ V C` of rows, each a ravelled tree.

    `trees.ravel` ravels a tree. Every batch of the curvature set is linearised once for all rows. A solver that
    multiplies equally many rows in several places traces the product once.
    """
    product, unravel = block_matvec(problem), partial(trees.unravel, problem.params)

    def rows(vectors: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
        return trees.ravel_batch(product(jax.vmap(unravel)(vectors)))

    return jax.jit(rows, inline=True)


class MeanEigenvalue(NamedTuple):
    """An estimate of the mean eigenvalue tr(C) / P.

    Attributes:
        value: The estimate.
        error: Its relative standard error, from the spread of the probes; NaN for a single probe.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]


def mean_eigenvalue(problem: Problem, key: Key[Array, ""], probes: int) -> MeanEigenvalue:
    """Estimate the mean eigenvalue tr(C) / P by Hutchinson's estimator.

    It is the mean of ⟨v, C v⟩ over random signs v, divided by the number of parameters. Its relative standard error
    is below √(2 / (probes · r)), where `r = tr(C)² / ‖C‖_F²` is the effective rank of C: at most 35 % with 16 probes,
    for a matrix of rank one.

    Args:
        problem: The problem.
        key: Draws the signs.
        probes: Number of random vectors.
    """
    product = matvec(problem)

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        signs = trees.rademacher_like(key, problem.params)
        return trees.dot(signs, product(signs))

    forms = jax.lax.map(one, jax.random.split(key, probes))
    mean = jnp.mean(forms)
    return MeanEigenvalue(mean / trees.size(problem.params), standard_error(forms) / jnp.abs(mean))


def standard_error(values: Float[Array, " probes"]) -> Float[Array, ""]:
    """Compute a mean's standard error from the spread of random probes.

    It is NaN for a single probe.
    """
    probes = len(values)
    return jnp.sqrt(jnp.sum((values - jnp.mean(values)) ** 2) / (probes * (probes - 1) or jnp.nan))


def _product(problem: Problem, batch: Batch) -> Matvec:
    """Return the product with one batch's curvature.

    Everything that does not depend on the vector is computed beforehand.
    """
    product = {
        "hessian": _hessian_product,
        "ggn": _ggn_product,
        "fisher": _fisher_product,
        "empirical_fisher": _empirical_fisher_product,
    }[problem.curvature]
    return product(problem, batch)


def _hessian_product(problem: Problem, batch: Batch) -> Matvec:
    """Return `v ↦ ∇²loss · v`, the derivative of the gradient along v."""

    def gradient(params: Params) -> Params:
        return jax.grad(problem.objective)(params, problem.frozen, batch)

    return jax.linearize(gradient, problem.params)[1]


def _ggn_product(problem: Problem, batch: Batch) -> Matvec:
    """Return `v ↦ J_yᵀ (∇²head) J_y · v`: linearise the outputs once, then transpose."""
    y, push = jax.linearize(lambda params: problem.objective.outputs(params, problem.frozen, batch), problem.params)
    _, curve = jax.linearize(jax.grad(problem.objective.loss.head), y)
    pull = jax.linear_transpose(push, problem.params)
    return lambda vector: pull(curve(push(vector)))[0]


def _fisher_product(problem: Problem, batch: Batch) -> Matvec:
    """Return `v ↦ J_yᵀ (mean of w wᵀ) J_y · v` with `w ~ N(0, ∇²head)`.

    It is the Gauss–Newton product with drawn samples in place of its middle matrix. For a separable loss, the samples
    of different examples are independent, so their products have expectation zero and are left out; only the noise of
    the diagonal blocks remains.
    """
    loss = problem.objective.loss
    y, push = jax.linearize(lambda params: problem.objective.outputs(params, problem.frozen, batch), problem.params)
    pull = jax.linear_transpose(push, problem.params)
    samples = output_samples(loss, y, batch, problem.samples)

    def middle(pushed: Array) -> Array:
        if loss.separable:
            weights = jnp.sum((samples * pushed[None]).reshape(*samples.shape[:2], -1), axis=2)
            weights = weights.reshape(*weights.shape, *[1] * (y.ndim - 1))
        else:
            weights = jnp.sum((samples * pushed[None]).reshape(samples.shape[0], -1), axis=1)
            weights = weights.reshape(-1, *[1] * y.ndim)
        return jnp.mean(samples * weights, axis=0)

    return lambda vector: pull(middle(push(vector)))[0]


def _empirical_fisher_product(problem: Problem, batch: Batch) -> Matvec:
    """Return v ↦ `b Σ_i g_i g_iᵀ v`, where g_i is the contribution of example i.

    g_i = J_iᵀ ∂loss/∂z_i is the contribution to the gradient of the batch. For a mean of per-example losses ℓ_i the
    product is with (1/b) Σ ∇ℓ_i ∇ℓ_iᵀ, the usual second moment.
    """
    objective = problem.objective
    images = objective.images(batch, jax.tree.leaves(problem.params)[0].dtype)
    z, push = jax.linearize(lambda params: objective.embed(params, problem.frozen, images), problem.params)
    pull = jax.linear_transpose(push, problem.params)
    cotangents = jax.grad(lambda z: objective.loss(objective.complete(z, problem.params, problem.frozen, batch)))(z)

    def middle(pushed: Array) -> Array:
        slopes = jnp.sum(cotangents * pushed, axis=(0, 2), keepdims=True)
        return z.shape[1] * slopes * cotangents

    return lambda vector: pull(middle(push(vector)))[0]
