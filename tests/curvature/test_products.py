"""Every curvature × loss equals the dense matrix of its textbook formula, on convolutional nets with BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.products import block_matvec, matvec
from influence_ssl_jax.losses import CosineDistance, SimCLR
from tests import problems
from tests.curvature.dense import dense


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
@pytest.mark.parametrize("loss", problems.LOSSES, ids=lambda loss: type(loss).__name__)
def test_matvec_is_the_dense_matrix(loss, curvature):
    deep = isinstance(loss, SimCLR) and curvature == "ggn"  # which network is no matter of the loss or the curvature
    problem = problems.problem(loss, curvature, module=problems.ConvNet() if deep else problems.Small())
    matrix = dense(problem)
    vector = trees.normal_like(jax.random.key(3), problem.params)
    got = trees.ravel(jax.jit(matvec(problem))(vector))
    want = matrix @ trees.ravel(vector)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())
    if curvature != "hessian":
        assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.abs(matrix).max()


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
def test_a_block_of_vectors_is_the_dense_matrix_times_each(curvature):
    problem = problems.problem(CosineDistance(), curvature, module=problems.Small())
    rows = np.random.default_rng(3).normal(size=(3, trees.size(problem.params)))
    block = jax.vmap(lambda row: trees.unravel(problem.params, row))(jnp.asarray(rows))
    got = trees.ravel_batch(jax.jit(block_matvec(problem))(block))
    want = rows @ np.asarray(dense(problem))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())
