"""Bounds of the exact form from any backend's solution: true residuals, and intervals that hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.evaluation.certificate import Solutions, bound_by_residual, refine, solve_and_multiply
from influence_ssl_jax.ihvp import BACKENDS, CG, EKFAC, Arnoldi, Damping, Exact, Gram, Identity, LiSSA
from tests.ihvp.dense import single
from tests.ihvp.fitted import asking, fitted, gradient_rows

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`

certified = jax.jit(bound_by_residual)
narrowed = jax.jit(functools.partial(refine, width=0.02))
solved = jax.jit(solve_and_multiply, static_argnums=0)


@functools.cache
def solved_in(kind):
    """What a backend makes of the gradients of the problem whose loss couples examples."""
    backend, problem, state, _ = fitted(kind, "coupled")
    rows, _, damping, _ = truth("coupled")
    return solved(backend, state, problem, jnp.asarray(rows), jnp.asarray(damping))


@functools.cache
def truth(name):
    """The gradients, the dense matrix of a small problem, and the forms at a tenth of its mean eigenvalue."""
    state, rows = fitted(Exact, name)[2], gradient_rows(name)
    vectors, values = np.asarray(state.eigenvectors), np.asarray(state.eigenvalues)
    damping = 0.1 * values.mean()
    return (
        rows,
        (vectors * (values + damping)) @ vectors.T,
        damping,
        ((rows @ vectors) ** 2 / (values + damping)).sum(1),
    )


def densely_judged(rows, matrix, solutions) -> Solutions:
    """Solutions with their products by the dense matrix, and as much doubt as float64 leaves of both."""
    unit = 32 * np.finfo(float).eps
    doubts = unit * np.linalg.norm(rows, axis=1), unit * np.linalg.norm(matrix, 2) * np.linalg.norm(solutions, axis=1)
    return Solutions(*(jnp.asarray(array) for array in (rows, solutions, solutions @ matrix, *doubts)))


@pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
def test_every_backend_states_its_residual_and_an_interval_that_holds(kind):
    backend, _, state, _ = fitted(kind, "coupled")
    rows, matrix, damping, want = truth("coupled")
    of_each_block = jax.tree.map(lambda _: jnp.asarray(damping), backend.resolve(state, Damping()))
    solutions = np.asarray(asking(kind, "coupled")(rows, of_each_block).solved)
    got = certified(densely_judged(rows, matrix, solutions), jnp.asarray(damping))
    left = np.linalg.norm(rows - solutions @ matrix, axis=1) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(got.residual, left, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(got.value, np.einsum("np,np->n", rows, solutions), rtol=1e-12)
    assert (got.interval.lower <= want).all()
    assert (want <= got.interval.upper).all()
    if kind in (Exact, CG, Gram):
        assert (got.interval.upper - got.interval.lower <= 1e-9 * want).all()
        assert float(got.residual.max()) < 1e-10
    elif kind is Identity:
        assert float(got.residual.min()) > 0.1  # an interval that holds is no proof of a good solve


@pytest.mark.parametrize("kind", [EKFAC, Identity, LiSSA], ids=lambda kind: kind.__name__)
def test_solutions_are_multiplied_by_the_matrix_itself(kind):
    """Of a backend with layers, one with none and one with products of its own; λ is one for the whole matrix."""
    solved, (rows, matrix, damping, want) = solved_in(kind), truth("coupled")
    np.testing.assert_array_equal(solved.rows, rows)
    products = np.asarray(solved.solutions) @ matrix
    error = np.linalg.norm(np.asarray(solved.products) - products, axis=1)
    assert (error <= np.asarray(solved.product_doubt)).all()
    assert (np.asarray(solved.product_doubt) <= 1e-9 * np.linalg.norm(products, axis=1)).all()
    assert (np.asarray(solved.doubt) > 0).all()
    backend, _, state, _ = fitted(kind, "coupled")
    of_each_block = jax.tree.map(lambda _: jnp.asarray(damping), backend.resolve(state, Damping()))
    solutions = asking(kind, "coupled")(rows, of_each_block).solved
    np.testing.assert_allclose(solved.solutions, solutions, rtol=1e-9, atol=1e-12 * np.abs(solutions).max())
    got = certified(solved, jnp.asarray(damping)).interval
    assert (got.lower <= want).all()
    assert (want <= got.upper).all()


def test_a_common_factor_costs_nothing():
    """A solution a hundred times too long has the same interval: backends are biased, and calibrated afterwards."""
    solutions, damping = solved_in(LiSSA), truth("coupled")[2]
    long = solutions._replace(
        solutions=100 * solutions.solutions,
        products=100 * solutions.products,
        product_doubt=100 * solutions.product_doubt,
    )
    one, other = certified(solutions, jnp.asarray(damping)), certified(long, jnp.asarray(damping))
    np.testing.assert_allclose(other.interval.lower, one.interval.lower, rtol=1e-9)
    np.testing.assert_allclose(other.interval.upper, one.interval.upper, rtol=1e-9)
    assert float(other.residual.min()) > 10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_refinement_reaches_the_width_from_a_shared_subspace_in_fewer_products(dtype):
    """Fewer than from the gradient itself, as `Identity` leaves it."""
    _, problem, _, gradients = fitted(Exact, "coupled")
    rows, matrix, damping, want = truth("coupled")
    if dtype == "float32":
        problem, gradients = single(problem, gradients)
    damping, key = jnp.asarray(damping, dtype), jax.random.key(1)
    backend = Arnoldi(10, 2, complement="drop", probes=2)
    state = jax.jit(backend.fit)(problem, key)
    shared = solved(backend, state, problem, jnp.asarray(rows, dtype), damping)
    length, own = (jnp.linalg.norm(each, axis=1) for each in (shared.rows, shared.solutions))
    products = jnp.asarray(rows @ matrix, dtype)
    plain = shared._replace(solutions=shared.rows, products=products, product_doubt=shared.product_doubt * length / own)
    taken = {}
    for name, solutions in {"plain": plain, "shared": shared}.items():
        got = narrowed(solutions, problem, damping, key)
        assert (got.lower <= want).all()
        assert (want <= got.upper).all()
        assert (got.upper - got.lower <= 0.021 * want).all()
        taken[name] = int(got.steps)
    assert taken["shared"] < taken["plain"]


def test_intervals_hold_in_float32_for_any_solution():
    """Solutions from exact to useless, of matrices over eight orders of magnitude, against float64."""
    rng, size, checked = np.random.default_rng(0), 24, 0
    for spectrum in (np.logspace(0, -8, size), np.repeat([1.0, 0.01, 0.0], 8), np.linspace(0, 1, size)):
        rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
        matrix = ((rotation * spectrum) @ rotation.T).astype(np.float32)
        values, vectors = np.linalg.eigh(matrix.astype(float))
        rows = (rng.normal(size=(1200, size)) @ (matrix + 1e-3 * np.eye(size))).astype(np.float32)
        for damping in (1e-3, 0.1):
            inverse = (vectors / (np.maximum(values, 0) + damping)) @ vectors.T
            want = np.einsum("np,pq,nq->n", rows, inverse, rows, dtype=float)
            noise = rng.choice([0, 1e-5, 1e-2, 1, 30], (1200, 1)) * rng.normal(size=rows.shape)
            x = (rows @ inverse) * rng.choice([0.1, 1, 7], (1200, 1)) + noise * np.linalg.norm(rows, axis=1)[:, None]
            x = x.astype(np.float32)
            products = x @ matrix + np.float32(damping) * x
            unit = 8 * np.finfo(np.float32).eps
            doubts = [unit * np.linalg.norm(rows, axis=1), unit * np.linalg.norm(x, axis=1) * (1 + damping)]
            solutions = Solutions(*(jnp.asarray(array, jnp.float32) for array in (rows, x, products, *doubts)))
            got = certified(solutions, jnp.asarray(damping, jnp.float32)).interval
            assert (got.lower <= want).all()
            assert (want <= got.upper).all()
            exact = noise[:, 0] == 0
            assert np.median((np.asarray(got.upper) / np.asarray(got.lower))[exact]) < 1.2
            checked += len(want)
    assert checked == 7200


def test_zero_has_the_interval_zero():
    zero = jnp.zeros((2, 3))
    got = certified(Solutions(zero, zero, zero, jnp.zeros(2), jnp.zeros(2)), jnp.asarray(0.1))
    for value in (got.value, got.residual, got.interval.lower, got.interval.upper):
        np.testing.assert_array_equal(value, 0.0)


def test_a_hessian_is_refused():
    backend, problem, state, _ = fitted(Identity, "coupled")
    problem = dataclasses.replace(problem, curvature="hessian")
    with pytest.raises(CurvatureError, match="semi-definite"):
        solve_and_multiply(backend, state, problem, jnp.asarray(gradient_rows("coupled")), jnp.asarray(1.0))
