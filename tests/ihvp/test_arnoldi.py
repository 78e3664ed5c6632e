"""Arnoldi against the dense matrix: exact at full rank, the textbook formula below it, bounds that hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.errors import CurvatureError, IndefiniteError
from influence_ssl_jax.ihvp import Arnoldi, Damping
from influence_ssl_jax.ihvp.arnoldi import galerkin_interval, measure_residuals
from influence_ssl_jax.ihvp.rounding import gradient_lengths, product_doubt
from influence_ssl_jax.losses import CosineDistance
from tests import problems
from tests.ihvp.dense import dense, single

pytestmark = pytest.mark.xdist_group("small problems")  # fitted once, in `fitted.py` and `dense.py`


def test_exact_at_full_rank():
    """The linear net's matrix I ⊗ 2XᵀX has every eigenvalue three times over."""
    problem, matrix, gradients, rows = dense(module="linear")
    backend = Arnoldi(rank=len(matrix), block=2, expansion=1.0, probes=2)
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    damping = 0.1 * np.trace(matrix) / len(matrix)
    np.testing.assert_allclose(float(state.mean), np.trace(matrix) / len(matrix), rtol=1e-10)
    want = rows @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T)
    got = jax.jit(backend.bilinear_form)(state, gradients, gradients, jnp.asarray(damping))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


def test_below_full_rank_it_is_the_textbook_formula():
    """On convolutions, with the complement and without: the two differ in what they say of the same eigenpairs."""
    problem, matrix, gradients, rows = dense()
    keep = Arnoldi(rank=10, block=2, expansion=4.0, probes=400)
    state = jax.jit(keep.fit)(problem, jax.random.key(2))
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(state.values, values[:10], rtol=1e-6)
    np.testing.assert_allclose(float(state.level), values[10:].mean(), rtol=0.1)
    damping = 0.1 * values.mean()
    inside = rows @ vectors[:, :10]
    dropped = (inside / (values[:10] + damping)) @ inside.T
    kept = dropped + (rows @ rows.T - inside @ inside.T) / (float(state.level) + damping)

    @functools.partial(jax.jit, static_argnums=0)
    def forms(backend, state, gradients, damping):
        return (
            backend.bilinear_form(state, gradients, gradients, damping),
            backend.quadratic_form(state, gradients, damping),
        )

    for backend, want in ((keep, kept), (dataclasses.replace(keep, complement="drop"), dropped)):
        bilinear, quadratic = forms(backend, state, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(quadratic, np.diag(want), rtol=1e-5)
        np.testing.assert_allclose(bilinear, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("module", "dtype", "rank"),
    [("linear", "float64", 3), ("conv", "float32", 20), ("linear", "float32", 20)],
)
def test_the_galerkin_interval_holds(module, dtype, rank):
    """Of few vectors, where the coupling is all of it, and of many, where rounding is.

    In float32 the small conv net's matrix is a difference that leaves three digits: that is measured, and
    allowed for.
    """
    problem, matrix, gradients, rows = dense(module=module)
    if dtype == "float32":
        problem, gradients = single(problem, gradients)
    state = jax.jit(Arnoldi(rank=rank, block=2, expansion=1.5, probes=2).fit)(problem, jax.random.key(3))
    measurement = problems.objective(CosineDistance(), problem.objective.network.module)
    lengths = jax.jit(gradient_lengths, static_argnums=0)(measurement, gradients)
    state = jax.jit(measure_residuals)(state, problem)

    @jax.jit
    def bounds(state, gradients, damping):
        moved = product_doubt(flat_products(problem), state.vectors[0], damping)
        return galerkin_interval(state, gradients, damping, measured=lengths, products=moved)

    for relative in (0.1, 1.0, 10.0):
        damping = relative * np.trace(matrix) / len(matrix)
        want = (rows * np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T).sum(1)
        interval = bounds(state, gradients, jnp.asarray(damping, dtype))
        assert (interval.lower <= want).all()
        assert (want <= interval.upper).all()
    assert (module, dtype) == ("conv", "float32") or (np.asarray(interval.upper) < 4 * want).all()


def test_an_indefinite_hessian_is_refused():
    problem, matrix, gradients, _ = dense("hessian")
    least = np.linalg.eigvalsh(matrix)[0]
    assert least < 0
    backend = Arnoldi(rank=10, block=2, expansion=3.0, probes=4)
    state = jax.jit(backend.fit)(problem, jax.random.key(4))
    np.testing.assert_allclose(float(state.smallest), least, rtol=1e-3)
    with pytest.raises(IndefiniteError):
        backend.resolve(state, Damping(absolute=-0.5 * least))
    with pytest.raises(CurvatureError, match="semi-definite"):
        galerkin_interval(state, gradients, jnp.asarray(1.0))
