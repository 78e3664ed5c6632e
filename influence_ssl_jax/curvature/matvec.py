"""Curvature × vector, for every curvature, without ever forming the matrix."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.accumulate import mean_over_batches
from influence_ssl_jax.curvature.sampling import output_samples
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params

Matvec: TypeAlias = Callable[[Params], Params]
OutputMap: TypeAlias = Callable[[Float[Array, "*outputs"]], Float[Array, "*outputs"]]


def matvec(problem: Problem) -> Matvec:
    """The map v ↦ C v, `C` the mean over the problem's batches.

    Memory is that of one batch, and the map is compiled once whatever their number.

    Args:
        problem: What is differentiated, where, over which data and as which curvature.

    Returns:
        A linear, self-adjoint function on trees of the structure of `problem.params`; may be called under `jit` and
        `vmap`.
    """
    product = {
        "hessian": _hessian_product,
        "ggn": _ggn_product,
        "fisher": _fisher_product,
        "empirical_fisher": _empirical_fisher_product,
    }[problem.curvature]

    return lambda vector: mean_over_batches(problem, lambda batch: product(problem, batch, vector))


def _hessian_product(problem: Problem, batch: Batch, vector: Params) -> Params:
    """∇²loss · v, forward over reverse: the derivative of the gradient along v."""

    def gradient(params: Params) -> Params:
        return jax.grad(problem.objective)(params, problem.frozen, batch)

    return jax.jvp(gradient, (problem.params,), (vector,))[1]


def _ggn_product(problem: Problem, batch: Batch, vector: Params) -> Params:
    """J_yᵀ (∇²head) J_y · v: linearise the outputs once, then transpose."""
    head = problem.objective.loss.head

    def outputs(params: Params) -> Array:
        return problem.objective.outputs(params, problem.frozen, batch)

    y, push = jax.linearize(outputs, problem.params)
    curved = jax.jvp(jax.grad(head), (y,), (push(vector),))[1]
    return jax.linear_transpose(push, problem.params)(curved)[0]


def _fisher_product(problem: Problem, batch: Batch, vector: Params) -> Params:
    """J_yᵀ (mean of w wᵀ) J_y · v with w ~ N(0, ∇²head): the GGN with its middle matrix replaced by drawn samples.

    For a separable loss the samples of different examples are independent, so their products, zero in expectation, are
    left out and only the noise of the blocks on the diagonal remains.
    """

    def outputs(params: Params) -> Array:
        return problem.objective.outputs(params, problem.frozen, batch)

    y, push = jax.linearize(outputs, problem.params)
    samples = output_samples(problem.objective.loss, y, batch, problem.samples)
    pushed = push(vector)
    if problem.objective.loss.separable:
        weights = jnp.sum((samples * pushed[None]).reshape(*samples.shape[:2], -1), axis=2)
        weights = weights.reshape(*weights.shape, *[1] * (y.ndim - 1))
    else:
        weights = jnp.sum((samples * pushed[None]).reshape(samples.shape[0], -1), axis=1)
        weights = weights.reshape(-1, *[1] * y.ndim)
    middle = jnp.mean(samples * weights, axis=0)
    return jax.linear_transpose(push, problem.params)(middle)[0]


def _empirical_fisher_product(problem: Problem, batch: Batch, vector: Params) -> Params:
    """`b Σ_i g_i g_iᵀ v` with g_i = J_iᵀ ∂loss/∂z_i, the contribution of example i to the gradient of the batch.

    For a mean of per-example losses ℓ_i this is (1/b) Σ ∇ℓ_i ∇ℓ_iᵀ, the usual second moment.
    """
    objective = problem.objective
    dtype = jax.tree.leaves(problem.params)[0].dtype
    images = objective.images(batch, dtype)

    def embed(params: Params) -> Array:
        return objective.embed(params, problem.frozen, images)

    z, push = jax.linearize(embed, problem.params)
    cotangents = jax.grad(lambda z: objective.loss(objective.complete(z, problem.frozen, batch)))(z)
    slopes = jnp.sum(cotangents * push(vector), axis=(0, 2), keepdims=True)
    return jax.linear_transpose(push, problem.params)(z.shape[1] * slopes * cotangents)[0]
