"""Every curvature × loss equals the dense matrix of its textbook formula, on a convolutional net with BatchNorm."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.matvec import matvec
from influence_ssl_jax.curvature.sampling import output_samples


@jax.jit
def dense(problem):
    """C by its definition: Jacobians and Hessians of whole batches, written out."""
    return jnp.mean(jax.lax.map(lambda batch: dense_of_batch(problem, batch), problem.batches), axis=0)


def dense_of_batch(problem, batch):
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    objective, frozen, size = problem.objective, problem.frozen, batch.index.size
    if problem.curvature == "hessian":
        return jax.hessian(lambda p: objective(unravel(p), frozen, batch))(flat)
    if problem.curvature == "empirical_fisher":
        images = objective.images(batch, jnp.float64)
        z = objective.embed(problem.params, frozen, images)
        slope = jax.grad(lambda z: objective.loss(objective.complete(z, frozen, batch)))(z)
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


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
@pytest.mark.parametrize("loss", problems.LOSSES, ids=lambda loss: type(loss).__name__)
def test_matvec_is_the_dense_matrix(loss, curvature):
    problem = problems.problem(loss, curvature)
    matrix = dense(problem)
    vector = trees.normal_like(jax.random.key(3), problem.params)
    got = trees.ravel(jax.jit(matvec(problem))(vector))
    want = matrix @ trees.ravel(vector)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())
    if curvature != "hessian":
        assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.abs(matrix).max()
