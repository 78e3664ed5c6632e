"""Heads are convex, and the Gauss–Newton matrix is `JᵀHJ`: dense, from closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from influence_ssl_jax.losses import (
    BYOL,
    BarlowTwins,
    CosineDistance,
    Embeddings,
    SimCLR,
    SimSiam,
    SquaredEuclid,
    Supervised,
    VICReg,
)
from tests.losses.cases import BATCH, LOSSES, WIDTH, draw, embeddings, name, value

INPUTS = 2


def linear(loss, seed=0):
    """`weights -> outputs` of a linear network, and its weights: [views·inputs] features of every view."""
    inputs = jnp.asarray(draw(seed, loss.views, BATCH, INPUTS))
    rest = embeddings(loss, seed)

    @jax.jit
    def outputs(weights):
        return loss.outputs(Embeddings(inputs @ weights.reshape(INPUTS, WIDTH), rest.target, rest.label)).ravel()

    return outputs, jnp.asarray(draw(seed + 2, INPUTS * WIDTH))


def head_hessian(loss, outputs):
    """The Hessian of the head from its formula, on raveled outputs."""
    if isinstance(loss, BarlowTwins):
        return 2 * loss.scale * np.diag(np.where(np.eye(WIDTH), 1.0, loss.off_diagonal).ravel())
    if isinstance(loss, SimCLR | Supervised):
        rows = outputs.reshape(2 * BATCH, -1) if isinstance(loss, SimCLR) else outputs.reshape(BATCH, -1)
        blocks = [(np.diag(p) - np.outer(p, p)) / len(rows) for p in softmax(rows, axis=1)]
        return np.block([[b if i == j else np.zeros_like(b) for j in range(len(rows))] for i, b in enumerate(blocks)])
    if isinstance(loss, VICReg):
        covariances = 2 * loss.covariance / WIDTH * np.tile(1 - np.eye(WIDTH), (2, 1))
        differences = np.full((BATCH, WIDTH), 2 * loss.invariance / (BATCH * WIDTH))
        return np.diag(np.concatenate([differences, covariances]).ravel())
    if isinstance(loss, BYOL | SimSiam | CosineDistance | SquaredEuclid):
        return np.eye(outputs.size) * {BYOL: 2, SimSiam: 0.5}.get(type(loss), 1) / BATCH
    raise NotImplementedError(f"write the Hessian of the head of {name(loss)} in `head_hessian`")


def central_differences(function, point, step=1e-6):
    columns = [
        (np.asarray(function(point + step * e)) - np.asarray(function(point - step * e))) / (2 * step)
        for e in np.eye(point.size)
    ]
    return np.stack(columns, axis=1)


def gauss_newton(loss, outputs, shape, weights):
    """Column by column, `v -> J^T ∇²head J v` by automatic differentiation."""

    def product(v):
        y, tangent = jax.jvp(outputs, (weights,), (v,))
        curved = jax.jvp(jax.grad(lambda y: loss.head(y.reshape(shape))), (y,), (tangent,))[1]
        return jax.vjp(outputs, weights)[1](curved)[0]

    return np.asarray(jax.jit(jax.vmap(product))(jnp.eye(weights.size)))


head = jax.jit(lambda loss, outputs: loss.head(outputs), static_argnums=0)


@functools.cache
def outputs_of(loss):
    """A loss's outputs of its embeddings, and the square root of its head's Hessian there, a row a direction."""
    given = embeddings(loss)

    @jax.jit
    def compute():
        outputs = loss.outputs(given)
        eye = jnp.eye(outputs.size)
        return outputs, jax.vmap(lambda e: loss.head_square_root(outputs, e.reshape(outputs.shape)).ravel())(eye)

    return jax.device_get(compute())


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_gauss_newton_is_jthj_and_positive_semidefinite(loss):
    outputs, weights = linear(loss)
    shape = outputs_of(loss)[0].shape
    jacobian = central_differences(outputs, np.asarray(weights))
    dense = jacobian.T @ head_hessian(loss, np.asarray(outputs(weights))) @ jacobian
    matrix = gauss_newton(loss, outputs, shape, weights)
    np.testing.assert_allclose(matrix, dense, atol=1e-7 * np.abs(dense).max())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13 * np.abs(dense).max())
    assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.abs(dense).max()


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_head_square_root_squares_to_the_hessian(loss):
    outputs, columns = outputs_of(loss)
    np.testing.assert_allclose(columns.T @ columns, head_hessian(loss, outputs.ravel()), atol=1e-14)
    hessian = jax.jit(jax.hessian(loss.head))(outputs).reshape(outputs.size, outputs.size)
    np.testing.assert_allclose(columns.T @ columns, hessian, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), weight=st.floats(0, 1))
def test_head_is_convex_along_segments(loss, seed, scale, weight):
    left, right = scale * draw(seed, 2, *outputs_of(loss)[0].shape)
    between = head(loss, weight * left + (1 - weight) * right)
    chord = weight * float(head(loss, left)) + (1 - weight) * float(head(loss, right))
    assert between <= chord + 1e-12 * abs(chord)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_separable_heads_are_means_over_examples(loss):
    outputs, _ = outputs_of(loss)
    if loss.separable:
        assert outputs.shape[0] == BATCH
        alone = [head(loss, outputs[b : b + 1]) for b in range(BATCH)]
        np.testing.assert_allclose(head(loss, outputs), np.mean(alone), rtol=1e-13)
        e = jax.device_get(embeddings(loss))
        parts = [
            value(loss, Embeddings(e.online[:, b : b + 1], e.target[:, b : b + 1], e.label[b : b + 1]))
            for b in range(BATCH)
        ]
        np.testing.assert_allclose(value(loss, e), np.mean(parts), rtol=1e-13)
    else:
        jacobian = jax.jit(jax.jacobian(lambda z: loss.outputs(Embeddings(z))))(embeddings(loss).online)
        coupled = np.abs(jacobian).reshape(-1, loss.views, BATCH, WIDTH).sum(axis=(1, 3)) > 1e-9
        assert np.any(coupled.sum(axis=1) > 1)
