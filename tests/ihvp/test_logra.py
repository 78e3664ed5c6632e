"""LoGra against its dense formula, with what lies outside its bases dropped or kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.ihvp import Damping, LoGra
from tests.ihvp.grid import Deep, example_gradients, given, measured_by


@pytest.mark.parametrize("complement", ["drop", "keep"])
@pytest.mark.parametrize("bases", ["random", "pca"])
def test_the_dense_formula(bases, complement):
    rng = np.random.default_rng(5)
    images, cotangents = rng.normal(size=(8, 1, 1, 5)), rng.normal(size=(8, 4))
    problem = given(images, cotangents, np.arange(8), Deep((4,), bias=False), num_batches=2)
    backend = LoGra(rank=2, bases=bases, complement=complement)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    left, right = (np.asarray(side)[0] for side in state.bases["Dense_0"])
    basis = np.einsum("ik,ol->iokl", left, right).reshape(20, 4)
    rows = np.asarray(trees.ravel_batch(example_gradients(problem)))
    curvature = rows.T @ rows / 8
    inner = basis.T @ curvature @ basis
    gradients = measured_by(problem)
    gradient_rows = np.asarray(trees.ravel_batch(gradients.full()))
    for relative in (0.05, 2.0):
        damping = backend.resolve(state, Damping(relative))
        value = float(damping["Dense_0"])
        assert value == pytest.approx(relative * np.trace(curvature) / 20)
        inverse = basis @ np.linalg.inv(inner + value * np.eye(4)) @ basis.T
        if complement == "keep":
            np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
            level = (np.trace(curvature) - np.trace(inner)) / 16
            inverse = inverse + (np.eye(20) - basis @ basis.T) / (level + value)
        elif bases == "random":  # columns are longer, so that a projection keeps squared norms on average
            np.testing.assert_allclose(basis.T @ basis, 20 / 4 * np.eye(4), atol=1e-12)
        got = backend.bilinear_form(state, gradients, gradients, damping)
        np.testing.assert_allclose(got, gradient_rows @ inverse @ gradient_rows.T, rtol=1e-9, atol=1e-12)
    if bases == "pca":
        inputs = images[:, 0, 0]
        leading = np.linalg.eigh(inputs.T @ inputs)[1][:, -2:]
        np.testing.assert_allclose(left @ left.T, leading @ leading.T, atol=1e-10)
    assert backend.definite == (complement == "keep")
    cut = backend.solve(state, problem.params, jnp.asarray(1.0))
    assert jax.tree.structure(cut) == jax.tree.structure(problem.params)
