"""The curvature matrix by its definition: Jacobians and Hessians of whole batches, written out."""

import jax
import jax.flatten_util
import jax.numpy as jnp

from influence_ssl_jax.curvature.contributions import output_samples


@jax.jit
def dense(problem):
    """C, the mean over the batches."""
    return jnp.mean(jax.lax.map(lambda batch: dense_of_batch(problem, batch), problem.batches), axis=0)


def dense_of_batch(problem, batch):
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    objective, frozen, size = problem.objective, problem.frozen, batch.index.size
    if problem.curvature == "hessian":
        return jax.hessian(lambda p: objective(unravel(p), frozen, batch))(flat)
    if problem.curvature == "empirical_fisher":
        images = objective.images(batch, jnp.float64)
        z = objective.embed(problem.params, frozen, images)
        slope = jax.grad(lambda z: objective.loss(objective.complete(z, problem.params, frozen, batch)))(z)
        jacobian = jax.jacrev(lambda p: objective.embed(unravel(p), frozen, images))(flat)
        contributions = jnp.einsum("vbd,vbdp->bp", slope, jacobian)
        return size * contributions.T @ contributions
    y = objective.outputs(problem.params, frozen, batch)
    jacobian = jax.jacrev(lambda p: objective.outputs(unravel(p), frozen, batch).reshape(-1))(flat)
    if problem.curvature == "ggn":
        middle = jax.hessian(lambda rows: objective.loss.head(rows.reshape(y.shape)))(y.reshape(-1))
        return jacobian.T @ middle @ jacobian
    w = output_samples(objective.loss, y, batch, problem.samples)
    if objective.loss.separable:  # examples are drawn independently: only their own blocks
        w = jnp.einsum("sb...,bc->scb...", w, jnp.eye(size)).reshape(problem.samples * size, -1)
    w = w.reshape(w.shape[0], -1)
    return jacobian.T @ (w.T @ w / problem.samples) @ jacobian
