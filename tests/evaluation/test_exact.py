"""Exact scores from the Gram matrix of outer products, against the dense matrix built from products with C."""

import functools

import jax
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.evaluation.exact import count_outer_products, function_space, materialise
from influence_ssl_jax.losses import CosineDistance, SimCLR
from tests import problems


@functools.cache
def case(curvature, loss):
    problem = problems.problem(loss, curvature, module=problems.Small())
    size = trees.size(problem.params)
    matrix = np.asarray(jax.jit(flat_products(problem))(jax.numpy.eye(size)))
    measurement = problems.objective(CosineDistance(), problems.Small())
    batch = problems.first_batch(problem)
    measured = jax.jit(measure, static_argnums=(0, 4))(measurement, problem.params, problem.frozen, batch, 2).gradients
    return problem, matrix, measured


CASES = [("fisher", CosineDistance()), ("fisher", SimCLR(0.5)), ("empirical_fisher", CosineDistance())]


@pytest.mark.parametrize(("curvature", "loss"), CASES, ids=lambda value: str(value)[:12])
def test_forms_are_those_of_the_dense_matrix(curvature, loss):
    problem, matrix, gradients = case(curvature, loss)
    rows = np.asarray(jax.jit(materialise)(gradients))
    np.testing.assert_allclose(rows, trees.ravel_batch(gradients.full()), atol=1e-12)
    space = function_space(problem, rows)
    np.testing.assert_allclose(space.mean_eigenvalue, np.trace(matrix) / len(matrix), rtol=1e-10)
    for damping in (1e-3, 0.1, 10.0):
        want = np.sum(rows * np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T, axis=1)
        np.testing.assert_allclose(space.forms(damping), want, rtol=1e-8)


def test_what_is_no_small_sum_of_outer_products_is_refused():
    problem, _, _ = case(*CASES[0])
    assert count_outer_products(problem) == 2 * 4 * 3  # batches · examples · samples
    with pytest.raises(InfluenceError, match="24 outer products, over the limit of 8"):
        function_space(problem, np.zeros((1, trees.size(problem.params))), max_rank=8)
    with pytest.raises(CurvatureError, match="got curvature='ggn'"):
        count_outer_products(problems.problem(CosineDistance(), "ggn", module=problems.Small()))
