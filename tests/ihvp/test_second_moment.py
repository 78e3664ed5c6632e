"""Where C is the second moment of the very gradients that are scored, their mean score is known; many of them or few."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.ihvp import CG, EKFAC, KFAC, Arnoldi, Deflated, Exact, LiSSA, LoGra, Nystrom
from tests.ihvp.grid import Deep, grid, measured_by

RNG = np.random.default_rng(0)
INPUTS, COTANGENTS = RNG.normal(size=(4, 3)), RNG.normal(size=(5, 2))
SIZE = 6
GRADIENTS = np.einsum("ni,mo->nmio", INPUTS, COTANGENTS).reshape(20, SIZE)
EIGENVALUES = np.linalg.eigvalsh(GRADIENTS.T @ GRADIENTS / 20)
DAMPING = 0.3 * EIGENVALUES.mean()
EXACT = [
    Exact(),
    CG(tolerance=1e-12, probes=2),
    Arnoldi(rank=SIZE, block=2, expansion=1.0, probes=2),
    Nystrom(rank=SIZE, probes=2),
    Deflated(rank=SIZE, block=2, expansion=1.0),
    LiSSA(depth=400, probes=2),
    EKFAC(),
    KFAC(),
    LoGra(rank=3),
]


def own(repeats=1, num_batches=1):
    """Every input with every cotangent, `repeats` times over, and their gradients."""
    problem = grid(np.tile(INPUTS, (repeats, 1)), COTANGENTS, Deep((2,), bias=False), num_batches)
    return problem, dataclasses.replace(
        measured_by(grid(INPUTS, COTANGENTS, Deep((2,), bias=False))),
        cotangents=jnp.asarray(np.tile(COTANGENTS, (4, 1)))[None],
    )


def scores(backend, problem, gradients):
    def run(problem, gradients):
        state = backend.fit(problem, jax.random.key(0))
        damping = jnp.asarray(DAMPING, jax.tree.leaves(problem.params)[0].dtype)
        return backend.quadratic_form(state, gradients, damping)

    return np.asarray(jax.jit(run)(problem, gradients))


@pytest.mark.parametrize("backend", EXACT, ids=lambda backend: type(backend).__name__)
def test_the_mean_score_is_the_effective_dimension(backend):
    """`mean gᵀ(C + λI)⁻¹g = Σ μ/(μ + λ)`: a sum in the place of a mean, anywhere, would show."""
    got = scores(backend, *own())
    np.testing.assert_allclose(got.mean(), np.sum(EIGENVALUES / (EIGENVALUES + DAMPING)), rtol=1e-9)


@pytest.mark.parametrize("backend", [Exact(), EKFAC(), LoGra(rank=3)], ids=lambda backend: type(backend).__name__)
def test_fifty_thousand_examples_in_float32_are_as_good_as_twenty(backend):
    problem, gradients = own(repeats=2500, num_batches=250)
    assert problem.batches.index.size == 50_000
    got = scores(backend, *trees.astype((problem, gradients), "float32"))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, scores(backend, *own()), rtol=1e-4)
