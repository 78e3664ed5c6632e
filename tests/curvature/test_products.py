"""Every curvature × loss equals the dense matrix of its textbook formula, on convolutional nets with BatchNorm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.products import block_matvec, matvec
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.losses import BYOL, CosineDistance, SimCLR, SimSiam
from influence_ssl_jax.problem import Objective, Problem
from tests import problems
from tests.curvature.dense import dense
from tests.curvature.networks import CASES, SHAPE


@jax.jit
def both(problem, vector):
    """The dense matrix and the product with it."""
    return dense(problem), trees.ravel(matvec(problem)(trees.unravel(problem.params, vector)))


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
@pytest.mark.parametrize("loss", problems.LOSSES, ids=lambda loss: type(loss).__name__)
def test_matvec_is_the_dense_matrix(loss, curvature):
    """Of a deep net once, of a convolutional one with each curvature, and of a linear one with each loss.

    Which network it is is no matter of the loss or the curvature.
    """
    deep = isinstance(loss, SimCLR) and curvature == "ggn"
    small = isinstance(loss, CosineDistance)
    module = problems.ConvNet() if deep else problems.Small() if small else problems.Linear()
    problem = problems.problem(loss, curvature, module=module, image=6 if deep or small else 3)
    vector = np.random.default_rng(3).normal(size=trees.size(problem.params))
    matrix, got = jax.device_get(both(problem, vector))
    want = matrix @ vector
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())
    if curvature != "hessian":
        assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.abs(matrix).max()


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
def test_simsiam_is_a_quarter_of_byol_whose_target_network_is_the_online_network(curvature):
    """At any parameters: the target is taken where the matrix is taken, and is a constant there."""
    for seed in range(2):
        ours = problems.problem(SimSiam(), curvature, module=problems.Small(), seed=seed)
        assert "target" not in ours.frozen
        frozen = {**ours.frozen, "target": {"params": ours.params, **ours.frozen}}
        theirs = dataclasses.replace(ours, frozen=frozen, objective=problems.objective(BYOL(), problems.Small()))
        vector = np.random.default_rng(3).normal(size=trees.size(ours.params))
        got, want = (np.asarray(both(problem, vector)[1]) for problem in (ours, theirs))
        factor = 16 if curvature == "empirical_fisher" else 4  # products of two gradients
        np.testing.assert_allclose(got, want / factor, rtol=1e-9, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher", "hessian"])
def test_a_block_of_vectors_is_the_dense_matrix_times_each(curvature):
    problem = problems.problem(CosineDistance(), curvature, module=problems.Small())
    rows = np.random.default_rng(3).normal(size=(3, trees.size(problem.params)))

    @jax.jit
    def multiply(problem, rows):
        block = jax.vmap(lambda row: trees.unravel(problem.params, row))(rows)
        return trees.ravel_batch(block_matvec(problem)(block))

    got = multiply(problem, jnp.asarray(rows))
    want = rows @ np.asarray(both(problem, rows[0])[0])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("product", [matvec, block_matvec])
def test_products_of_a_rule_for_backwards_alone_are_refused_with_a_way_out(product):
    case = CASES["quantised_straight_through"]()
    objective = Objective(case.network, problems.Noisy(), CosineDistance())
    batches = problems.batches(image=SHAPE[0], channels=SHAPE[2])
    vector = jax.tree.map(lambda leaf: leaf[None], case.params) if product is block_matvec else case.params
    with pytest.raises(StructureError, match=r"custom_vjp.*custom_jvp.*Gram, EKFAC, LoGra"):
        product(Problem(case.params, case.frozen, batches, objective))(vector)
