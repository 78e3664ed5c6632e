"""CG: preconditioned or not, alone or in company, the same solution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp import CG, EKFAC, Arnoldi, LoGra
from influence_ssl_jax.ihvp.cg import CGState
from tests.ihvp.dense import dense

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`


def truth(damping):
    _, matrix, _, rows = dense(module="linear")
    return rows @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T)


@functools.cache
def setting():
    problem, matrix, gradients, _ = dense(module="linear")
    return problem, gradients, 0.1 * np.trace(matrix) / len(matrix)


@pytest.mark.parametrize("other", [Arnoldi(rank=18, block=2, probes=4), EKFAC(samples=4)])
def test_a_preconditioner_changes_the_steps_and_not_the_solution(other):
    problem, gradients, damping = setting()
    backend = CG(tolerance=1e-11, iterations=1000, preconditioner=other, probes=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    got = jax.jit(backend.bilinear_form)(state, gradients, gradients, jnp.asarray(damping))
    want = truth(damping)
    np.testing.assert_allclose(got, want, atol=1e-8 * np.abs(want).max())
    if isinstance(other, Arnoldi):
        few = jax.jit(dataclasses.replace(backend, iterations=7).draw_gram)
        early = few(state, formed(1, 7)[2], jnp.asarray(damping)).residual.max()
        assert float(early) < 0.1 * float(formed(1, 7)[0].residual.max())


@functools.cache
def formed(shared, iterations):
    """Forms and residuals of three examples in two draws each after so many iterations, and a way to ask again."""
    problem, gradients, damping = setting()
    zero = jnp.zeros(())
    backend, state = CG(tolerance=1e-11, iterations=iterations, shared=shared), CGState(problem, zero, zero, zero, None)
    ask = jax.jit(lambda gradients: backend.draw_gram(state, gradients, jnp.asarray(damping)))
    three = [0, 1, 2, 4, 5, 6]
    images, cotangents = np.asarray(gradients.images)[:, three], np.asarray(gradients.cotangents)[:, three]
    few = dataclasses.replace(gradients, images=jnp.asarray(images), cotangents=jnp.asarray(cotangents))
    return ask(few), ask, few


def test_examples_that_share_a_space_are_solved_in_fewer_steps():
    """Two of three share one; the third has the empty places of the second block to itself."""
    _, _, damping = setting()
    want = truth(damping).reshape(2, 4, 2, 4)[:, np.arange(3), :, np.arange(3)]
    early = {shared: float(formed(shared, 7)[0].residual[:2].max()) for shared in (1, 2)}
    assert early[2] < 0.3 * early[1]
    np.testing.assert_allclose(formed(2, 1000)[0].values, want, rtol=1e-9)


def test_alone_an_example_does_not_know_the_others():
    """To the bit, however early the iteration ends: a run that is resumed gives what it would have given."""
    one, ask, gradients = formed(1, 7)
    cotangents = np.array(gradients.cotangents)
    cotangents[:, [1, 4]] *= -7.0
    cotangents[:, [2, 5]] = 0.0
    other = ask(dataclasses.replace(gradients, cotangents=jnp.asarray(cotangents)))
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert not np.any(after[2])


def test_an_example_alone_is_the_least():
    with pytest.raises(InfluenceError, match=r"CG: shared is a finite number of at least 1 .* got 0"):
        CG(shared=0)


def test_what_drops_directions_is_no_preconditioner():
    for other in (LoGra(), Arnoldi(complement="drop")):
        with pytest.raises(InfluenceError, match="positive definite"):
            CG(preconditioner=other)
