"""CG: preconditioned or not, the same solution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp import CG, EKFAC, Arnoldi, LoGra
from tests.ihvp.dense import dense


def truth(damping):
    _, matrix, _, rows = dense()
    return rows @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T)


@functools.cache
def setting():
    problem, matrix, gradients, _ = dense()
    return problem, gradients, 0.1 * np.trace(matrix) / len(matrix)


@pytest.mark.parametrize("other", [None, Arnoldi(rank=16, block=2, probes=4), EKFAC(samples=4)])
def test_a_preconditioner_changes_the_steps_and_not_the_solution(other):
    problem, gradients, damping = setting()
    backend = CG(tolerance=1e-11, iterations=1000, preconditioner=other, probes=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    got = jax.jit(backend.bilinear_form)(state, gradients, gradients, jnp.asarray(damping))
    want = truth(damping)
    np.testing.assert_allclose(got, want, atol=1e-8 * np.abs(want).max())


def test_a_good_preconditioner_saves_steps():
    problem, gradients, damping = setting()
    residual = {}
    for name, other in {"none": None, "arnoldi": Arnoldi(rank=30, block=2, probes=4)}.items():
        backend = CG(tolerance=1e-12, iterations=8, preconditioner=other, probes=2)
        state = jax.jit(backend.fit)(problem, jax.random.key(0))
        residual[name] = float(jax.jit(backend.draw_gram)(state, gradients, jnp.asarray(damping)).residual.max())
    assert residual["arnoldi"] < 0.1 * residual["none"]


def test_what_drops_directions_is_no_preconditioner():
    for other in (LoGra(), Arnoldi(complement="drop")):
        with pytest.raises(InfluenceError, match="positive definite"):
            CG(preconditioner=other)
