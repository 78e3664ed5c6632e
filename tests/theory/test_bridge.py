"""The pipeline against the theory: `self_influence`, from 8-bit images to the table, equals the closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from influence_ssl_jax.ihvp import Damping, Exact
from influence_ssl_jax.losses import CosineDistance, SquaredEuclid
from influence_ssl_jax.theory import background, cosine_derivatives, gauss_newton, leverage, linear
from tests import problems
from tests.theory.bridge import CONJUGATE, DAMPING, EXAMPLES, SETTINGS, Tanh, only, problem, scores, views

PATHS = ("both", "clean", "perturbed")
SHALLOW = [(form(gradient=path), Exact()) for form in (SquaredEuclid, CosineDistance) for path in PATHS]
SHALLOW += [(SquaredEuclid(), CONJUGATE), (CosineDistance(), CONJUGATE), (CosineDistance("clean"), CONJUGATE)]
DEEP = [(SquaredEuclid(), Tanh()), (CosineDistance(), Tanh()), (CosineDistance(), problems.ConvNet(width=2, outputs=3))]


def residual_and_jacobian(loss, weight, x, perturbed):
    """Of one example of a linear network, in closed form and row-major vec W."""
    if isinstance(loss, SquaredEuclid):
        residual = gauss_newton.euclidean_residual(weight @ x, weight @ perturbed)
        moved = {"both": x - perturbed, "clean": x, "perturbed": -perturbed}[loss.gradient]
        return residual, 2**0.5 * jnp.kron(jnp.eye(len(weight)), moved[None])
    jacobian = {
        "both": lambda: cosine_derivatives.jacobian(weight, x, perturbed),
        "clean": lambda: cosine_derivatives.stop_gradient_jacobian(weight, x),
        "perturbed": lambda: -cosine_derivatives.stop_gradient_jacobian(weight, perturbed),
    }[loss.gradient]()
    return gauss_newton.cosine_residual(weight @ x, weight @ perturbed), jacobian


def closed(whole):
    """Weight, perturbations, residuals and Jacobians of a linear problem."""
    weight = whole.params["dense"]["kernel"].T
    clean, perturbed = views(whole)
    parts = [residual_and_jacobian(whole.objective.loss, weight, *pair) for pair in zip(clean, perturbed, strict=True)]
    return weight, perturbed - clean, *(jnp.stack(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize(("loss", "backend"), SHALLOW, ids=str)
def test_a_linear_network_scores_by_the_closed_forms(loss, backend):
    """With a point's own curvature and with that of the data set."""
    whole = problem(loss)
    weight, deltas, residuals, jacobians = closed(whole)
    for i in (0, EXAMPLES - 1):
        expected = gauss_newton.influence(residuals[i], jacobians[i] @ jacobians[i].T, DAMPING)
        own = scores(only(whole, i), backend)[i]
        np.testing.assert_allclose(own, expected, rtol=1e-9)
        if loss == SquaredEuclid():
            np.testing.assert_allclose(own, linear.influence(weight, deltas[i], 1.0, DAMPING), rtol=1e-9)
    curvature = jnp.einsum("nri,nrj->ij", jacobians, jacobians) / EXAMPLES
    gradients = jnp.einsum("nr,nri->ni", residuals, jacobians)
    found = scores(whole, backend)
    np.testing.assert_allclose(found, [background.score(g, g, curvature, DAMPING) for g in gradients], rtol=1e-9)
    if loss == SquaredEuclid():
        np.testing.assert_allclose(found, leverage.influences(weight, deltas, 1.0, DAMPING), rtol=1e-9)


def test_the_exact_hessian_of_the_cosine_distance():
    """Indefinite, so damped beyond its most negative eigenvalue."""
    whole = problem(CosineDistance(), curvature="hessian")
    weight, _, residuals, jacobians = closed(whole)
    hessians = [cosine_derivatives.hessian(weight, *pair) for pair in zip(*views(whole), strict=True)]
    curvature = jnp.mean(jnp.stack(hessians), axis=0)
    damping = float(-2 * jnp.linalg.eigvalsh(curvature)[0])
    assert damping > 0
    settings = dataclasses.replace(SETTINGS, damping=Damping(absolute=damping))
    gradients = jnp.einsum("nr,nri->ni", residuals, jacobians)
    expected = [background.score(g, g, curvature, damping) for g in gradients]
    np.testing.assert_allclose(scores(whole, Exact(), settings), expected, rtol=1e-9)


@pytest.mark.parametrize(("loss", "module"), DEEP, ids=["tanh-euclid", "tanh-cosine", "convolutions-cosine"])
def test_any_network_scores_by_the_gram_of_its_residual(loss, module):
    """`rᵀK(K + λ)⁻¹r` with `K` of the size of the embedding, whatever the number of parameters."""
    whole = problem(loss, module)
    flat, unravel = ravel_pytree(whole.params)
    form = {SquaredEuclid: gauss_newton.euclidean_residual, CosineDistance: gauss_newton.cosine_residual}[type(loss)]
    batch = jax.tree.map(lambda leaf: leaf[0], whole.batches)
    images = whole.objective.images(batch, jnp.float64)

    def residuals(flat):
        embeddings = [module.apply({"params": unravel(flat), **whole.frozen}, view) for view in images]
        return jax.vmap(form)(*embeddings)

    jacobian = jax.jit(jax.jacrev(lambda flat: residuals(flat)[1]))(flat)
    expected = gauss_newton.influence(residuals(flat)[1], jacobian @ jacobian.T, DAMPING)
    np.testing.assert_allclose(scores(only(whole, 1), Exact())[1], expected, rtol=1e-9)
