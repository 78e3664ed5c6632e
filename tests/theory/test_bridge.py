"""The pipeline against the theory: `self_influence`, from 8-bit images to the table, equals the closed forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from influence_ssl_jax.ihvp import Damping, Exact
from influence_ssl_jax.losses import CosineDistance, SquaredEuclid
from influence_ssl_jax.theory import background, cosine, gauss_newton, leverage, linear
from tests import problems
from tests.theory.bridge import CONJUGATE, DAMPING, EXAMPLES, SETTINGS, Tanh, only, problem, scores, views
from tests.theory.cases import compiled

PATHS = ("both", "clean", "perturbed")
SHALLOW = [(form(gradient=path), Exact()) for form in (SquaredEuclid, CosineDistance) for path in PATHS]
SHALLOW += [(SquaredEuclid(), CONJUGATE), (CosineDistance("clean"), CONJUGATE)]
DEEP = [(SquaredEuclid(), Tanh()), (CosineDistance(), Tanh()), (CosineDistance(), problems.ConvNet(width=2, outputs=3))]


def residual_and_jacobian(loss, weight, x, perturbed):
    """Of one example of a linear network, in closed form and row-major vec W."""
    if isinstance(loss, SquaredEuclid):
        residual = gauss_newton.euclidean_residual(weight @ x, weight @ perturbed)
        moved = {"both": x - perturbed, "clean": x, "perturbed": -perturbed}[loss.gradient]
        return residual, 2**0.5 * jnp.kron(jnp.eye(len(weight)), moved[None])
    jacobian = {
        "both": lambda: cosine.jacobian(weight, x, perturbed),
        "clean": lambda: cosine.stop_gradient_jacobian(weight, x),
        "perturbed": lambda: -cosine.stop_gradient_jacobian(weight, perturbed),
    }[loss.gradient]()
    return gauss_newton.cosine_residual(weight @ x, weight @ perturbed), jacobian


@jax.jit
def closed(whole):
    """Weight, perturbations, residuals, Jacobians, mean curvature and gradients of a linear problem."""
    weight = whole.params["dense"]["kernel"].T
    clean, perturbed = views(whole)
    of_one = functools.partial(residual_and_jacobian, whole.objective.loss, weight)
    residuals, jacobians = jax.vmap(of_one)(clean, perturbed)
    curvature = jnp.einsum("nri,nrj->ij", jacobians, jacobians) / EXAMPLES
    return weight, perturbed - clean, residuals, jacobians, curvature, jnp.einsum("nr,nri->ni", residuals, jacobians)


@pytest.mark.parametrize(("loss", "backend"), SHALLOW, ids=str)
def test_a_linear_network_scores_by_the_closed_forms(loss, backend):
    """With a point's own curvature and with that of the data set."""
    whole = problem(loss)
    weight, deltas, residuals, jacobians, curvature, gradients = jax.device_get(closed(whole))
    for i in (0, EXAMPLES - 1):
        expected = compiled(gauss_newton).influence(residuals[i], jacobians[i] @ jacobians[i].T, DAMPING)
        own = scores(only(whole, i), backend)[i]
        np.testing.assert_allclose(own, expected, rtol=1e-9)
        if loss == SquaredEuclid():
            np.testing.assert_allclose(own, compiled(linear).influence(weight, deltas[i], 1.0, DAMPING), rtol=1e-9)
    scored, score = scores(whole, backend), compiled(background).score
    np.testing.assert_allclose(scored, [score(g, g, curvature, DAMPING) for g in gradients], rtol=1e-9)
    if loss == SquaredEuclid():
        np.testing.assert_allclose(scored, compiled(leverage).influences(weight, deltas, 1.0, DAMPING), rtol=1e-9)


def test_the_exact_hessian_of_the_cosine_distance():
    """Indefinite, so damped beyond its most negative eigenvalue."""
    whole = problem(CosineDistance(), curvature="hessian")
    weight, *_, gradients = closed(whole)
    hessians = jax.jit(lambda whole: jax.vmap(functools.partial(cosine.hessian, weight))(*views(whole)))
    curvature = np.mean(hessians(whole), axis=0)
    damping = float(-2 * np.linalg.eigvalsh(curvature)[0])
    assert damping > 0
    settings = dataclasses.replace(SETTINGS, damping=Damping(absolute=damping))
    expected = [compiled(background).score(g, g, curvature, damping) for g in np.asarray(gradients)]
    np.testing.assert_allclose(scores(whole, Exact(), settings), expected, rtol=1e-9)


@pytest.mark.parametrize(("loss", "module"), DEEP, ids=["tanh-euclid", "tanh-cosine", "convolutions-cosine"])
def test_any_network_scores_by_the_gram_of_its_residual(loss, module):
    """`rᵀK(K + λ)⁻¹r` with `K` of the size of the embedding, whatever the number of parameters."""
    whole = problem(loss, module)
    flat, unravel = ravel_pytree(whole.params)
    form = {SquaredEuclid: gauss_newton.euclidean_residual, CosineDistance: gauss_newton.cosine_residual}[type(loss)]
    batch = jax.tree.map(lambda leaf: leaf[0, 1:2], whole.batches)

    def residual(flat):
        images = whole.objective.images(batch, jnp.float64)
        embeddings = [module.apply({"params": unravel(flat), **whole.frozen}, view)[0] for view in images]
        return form(*embeddings)

    value, jacobian = jax.device_get(jax.jit(lambda flat: (residual(flat), jax.jacrev(residual)(flat)))(flat))
    expected = compiled(gauss_newton).influence(value, jacobian @ jacobian.T, DAMPING)
    np.testing.assert_allclose(scores(only(whole, 1), Exact())[1], expected, rtol=1e-9)
