"""CG: preconditioned or not, alone or in company, the same solution."""

import dataclasses
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


@functools.cache
def formed(shared, iterations):
    """Forms and residuals of four examples in two draws each after so many iterations, and a way to ask again."""
    problem, gradients, damping = setting()
    backend = CG(tolerance=1e-11, iterations=iterations, shared=shared, probes=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    ask = jax.jit(lambda gradients: backend.draw_gram(state, gradients, jnp.asarray(damping)))
    return ask(gradients), ask


def test_examples_that_share_a_space_are_solved_in_fewer_steps():
    """Three of four share one; the fourth has the empty places of the second block to itself."""
    _, _, damping = setting()
    want = truth(damping).reshape(2, 4, 2, 4)[:, np.arange(4), :, np.arange(4)]
    few, _ = formed(3, 12)
    assert float(few.residual.max()) < 0.1 * float(formed(1, 12)[0].residual.max())
    np.testing.assert_allclose(formed(3, 1000)[0].values, want, rtol=1e-9)


def test_alone_an_example_does_not_know_the_others():
    """To the bit, however early the iteration ends: a run that is resumed gives what it would have given."""
    (one, ask), (_, gradients, _) = formed(1, 12), setting()
    cotangents = np.array(gradients.cotangents)
    cotangents[:, [1, 5]] *= -7.0
    cotangents[:, [2, 6]] = 0.0
    other = ask(dataclasses.replace(gradients, cotangents=jnp.asarray(cotangents)))
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(before)[[0, 3]], np.asarray(after)[[0, 3]])
    assert not np.any(other.values[2])
    assert float(other.residual[2]) == 0.0


def test_an_example_alone_is_the_least():
    with pytest.raises(InfluenceError, match="shared=0"):
        CG(shared=0)


def test_what_drops_directions_is_no_preconditioner():
    for other in (LoGra(), Arnoldi(complement="drop")):
        with pytest.raises(InfluenceError, match="positive definite"):
            CG(preconditioner=other)
