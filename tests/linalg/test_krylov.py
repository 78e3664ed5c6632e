"""Ritz pairs, power iteration and block CG against scipy and dense formulas, on prescribed spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_ssl_jax.linalg.krylov import block_cg, largest_eigenvalue, leading_eigenpairs

SIZE = 24


def with_spectrum(values, seed=0):
    orthogonal = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (orthogonal * values) @ orthogonal.T


SPECTRA = {
    "simple": 2.0 ** -np.arange(SIZE),
    "repeated": np.repeat([5.0, 3.0, 1.0, 0.0], SIZE // 4),
    "indefinite": np.linspace(-4.0, 3.0, SIZE),
    "zero": np.zeros(SIZE),
}


@functools.partial(jax.jit, static_argnames=("rank", "block", "dimension", "restarts"))
def subspace_of(matrix, seed, rank, block, dimension, restarts=0):
    return leading_eigenpairs(
        lambda rows: rows @ matrix, jax.random.key(seed), matrix[0], rank, block, dimension, restarts
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("block", [1, 5])
def test_the_whole_space_gives_every_eigenpair(spectrum, block):
    """Repeated eigenvalues included, of multiplicity above the block: breakdowns are restarted."""
    values = SPECTRA[spectrum]
    matrix = with_spectrum(values)
    pairs = subspace_of(matrix, 0, SIZE, block, SIZE)
    np.testing.assert_allclose(np.sort(pairs.values), np.sort(values), atol=1e-12)
    np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(SIZE), atol=1e-12)
    np.testing.assert_allclose(pairs.vectors.T @ (pairs.values[:, None] * pairs.vectors), matrix, atol=1e-11)
    np.testing.assert_allclose(pairs.smallest, values.min(), atol=1e-12)


def test_a_single_vector_finds_a_repeated_eigenvalue_only_by_restart():
    """Four distinct eigenvalues: the Krylov space of one vector ends after four steps with one copy of each."""
    matrix = with_spectrum(SPECTRA["repeated"])
    assert np.sum(np.abs(subspace_of(matrix, 0, 4, 1, 4).values - 5.0) < 1e-9) == 1
    assert np.sum(np.abs(subspace_of(matrix, 0, SIZE, 1, SIZE).values - 5.0) < 1e-9) == SIZE // 4


RUNS = pytest.mark.parametrize(("dimension", "restarts"), [(24, 0), (12, 3)])


@RUNS
def test_leading_pairs_are_those_of_scipy(dimension, restarts):
    matrix = with_spectrum(np.concatenate([[9.0, -8.0, 7.0, 7.0], np.linspace(0, 1, 56)]))
    pairs = subspace_of(matrix, 1, 4, 2, dimension, restarts)
    want, vectors = scipy.sparse.linalg.eigsh(matrix, k=4, which="LM")
    np.testing.assert_allclose(np.sort(pairs.values), np.sort(want), atol=1e-6)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, vectors @ vectors.T, atol=1e-3)


@RUNS
def test_coupling_is_the_residual(dimension, restarts):
    matrix = with_spectrum(np.linspace(-4.0, 3.0, 60))
    pairs = subspace_of(matrix, 2, 4, 2, dimension, restarts)
    vectors = np.asarray(pairs.vectors)
    residual = matrix @ vectors.T - vectors.T * np.asarray(pairs.values)
    np.testing.assert_allclose(np.linalg.norm(pairs.coupling, axis=1), np.linalg.norm(residual, axis=0), atol=1e-12)
    np.testing.assert_allclose(pairs.coupling @ pairs.coupling.T, residual.T @ residual, atol=1e-12)
    assert pairs.smallest >= -4.0 - 1e-12


def test_more_than_the_space_holds_is_zero():
    matrix = with_spectrum(np.array([3.0, 2.0, 1.0, 1.0, 0.5]))
    pairs = subspace_of(matrix, 0, 9, 3, 20)
    assert pairs.vectors.shape == (5, 5)
    np.testing.assert_allclose(np.sort(pairs.values), [0.5, 1.0, 1.0, 2.0, 3.0], atol=1e-12)


def test_orthogonal_in_float32():
    matrix = jnp.asarray(with_spectrum(10.0 ** -np.linspace(0, 8, 120)), jnp.float32)
    pairs = subspace_of(matrix, 0, 60, 4, 100)
    np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(60), atol=3e-6)
    np.testing.assert_allclose(pairs.values[:10], 10.0 ** -np.linspace(0, 8, 120)[:10], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, 0.2, 0.0), (2.0, 2.0, 1.0, 0.5), (-4.0, 1.0, 0.3, 0.1), (0.0,) * 4])
def test_rises_to_the_largest_eigenvalue(spectrum):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    dense = jnp.asarray((rotation * np.asarray(spectrum)) @ rotation.T)
    estimates = [
        float(largest_eigenvalue(lambda rows: rows @ dense, jax.random.key(0), jnp.zeros(4), n)) for n in (2, 5, 60)
    ]
    assert estimates[0] <= estimates[1] + 1e-12
    assert estimates[1] <= estimates[2] + 1e-12
    np.testing.assert_allclose(estimates[2], np.abs(spectrum).max(), rtol=1e-9, atol=1e-12)


SIZE, ROWS = 24, 6


DEFINITE = {
    "geometric": 10.0 ** -np.linspace(0, 4, SIZE),
    "outliers": np.concatenate([1e4 * np.arange(1.0, 6.0), np.linspace(0.5, 1, SIZE - 5)]),
    "repeated": np.repeat([5.0, 3.0, 1.0, 0.01], SIZE // 4),
    "one": np.ones(SIZE),
}


def awkward(rows, kind):
    """Right-hand sides that would make the matrices of the textbook's block CG singular."""
    rows = rows.copy()
    if kind == "dependent":
        rows[2], rows[3], rows[4] = rows[0], 2 * rows[0] - rows[1], rows[0] * (1 + 1e-9)
    elif kind == "zero":
        rows[[1, 4]] = 0
    elif kind == "uneven":
        rows *= 10.0 ** -np.arange(0, 2 * len(rows), 2)[:, None]
    return rows


@jax.jit
def shared(matrix, rows, preconditioner, tolerance, iterations):
    return block_cg(lambda v: v @ matrix, rows, tolerance, iterations, lambda v: v @ preconditioner)


@jax.jit
def alone(matrix, rows, preconditioner, tolerance, iterations):
    """The oracle: as many Krylov spaces as right-hand sides."""
    cg = jax.scipy.sparse.linalg.cg

    def one(row):
        precondition = lambda v: preconditioner @ v  # noqa: E731
        return cg(lambda v: matrix @ v, row, tol=tolerance, atol=0.0, maxiter=iterations, M=precondition)[0]

    return jax.vmap(one)(rows)


def near(matrix, seed):
    """A preconditioner: the inverse of the matrix with what is below its third eigenvalue evened out."""
    values, vectors = np.linalg.eigh(matrix)
    values[:-3] = np.exp(np.log(values[:-3]).mean() + np.random.default_rng(seed).uniform(-0.3, 0.3, SIZE - 3))
    return (vectors / values) @ vectors.T


@pytest.mark.parametrize("kind", ["independent", "dependent", "zero", "uneven"])
@pytest.mark.parametrize("spectrum", DEFINITE)
def test_every_right_hand_side_is_solved(spectrum, kind):
    @settings(max_examples=5)
    @given(st.integers(0, 2**31), st.booleans())
    def check(seed, preconditioned):
        matrix = with_spectrum(DEFINITE[spectrum], seed)
        rows = awkward(np.random.default_rng(seed).normal(size=(ROWS, SIZE)), kind)
        other = near(matrix, seed) if preconditioned else np.eye(SIZE)
        solved = shared(matrix, rows, other, 1e-11, 1000)
        want, length = np.linalg.solve(matrix, rows.T).T, np.linalg.norm(rows, axis=1)
        left = rows - np.asarray(solved.solutions) @ matrix
        np.testing.assert_allclose(solved.residuals, left, atol=1e-10 * length.max())
        single = np.linalg.norm(rows - np.asarray(alone(matrix, rows, other, 1e-11, 1000)) @ matrix, axis=1)
        assert (np.linalg.norm(left, axis=1) <= np.maximum(3e-11 * length, 10 * single)).all()
        error = np.linalg.norm(np.asarray(solved.solutions) - want, axis=1)
        assert (error <= 1e-10 * length / DEFINITE[spectrum].min()).all()

    check()


@pytest.mark.parametrize("rows", [SIZE, SIZE + 7])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_block_as_wide_as_the_space_or_wider_takes_a_step_or_two(rows, dtype):
    for matrix in map(with_spectrum, DEFINITE.values()):
        right = np.random.default_rng(0).normal(size=(rows, SIZE))
        arrays = (jnp.asarray(a, dtype) for a in (matrix, right, np.eye(SIZE)))
        solved = shared(*arrays, 1e-10 if dtype == "float64" else 1e-4, 100)
        assert int(solved.iterations) <= (1 if dtype == "float64" else 3)
        assert np.isfinite(solved.solutions).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_an_iterate_is_the_best_of_the_block_krylov_space(steps, preconditioned):
    """Galerkin: with an orthonormal basis K of `span{PB, PAPB, …}`, `x = K (KᵀAK)⁻¹ Kᵀb` for every b."""
    matrix = with_spectrum(np.linspace(0.1, 3, SIZE))
    rows = np.random.default_rng(1).normal(size=(ROWS, SIZE))
    other = near(matrix, 2) if preconditioned else np.eye(SIZE)
    powers = [other @ rows.T]
    for _ in range(steps - 1):
        powers.append(other @ (matrix @ powers[-1]))
    basis = np.linalg.qr(np.concatenate(powers, axis=1))[0]
    want = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ rows.T)
    solved = shared(matrix, rows, other, 0.0, steps)
    np.testing.assert_allclose(solved.solutions, want.T, atol=1e-9 * np.abs(want).max())
    assert int(solved.iterations) == steps


def test_a_block_of_one_is_conjugate_gradients_by_scipy():
    matrix = with_spectrum(DEFINITE["geometric"])
    row = np.random.default_rng(3).normal(size=(1, SIZE))
    other = near(matrix, 4)
    for steps in (1, 3, 8):
        want, _ = scipy.sparse.linalg.cg(matrix, row[0], rtol=0.0, atol=0.0, maxiter=steps, M=other)
        solved = shared(matrix, row, other, 0.0, steps).solutions[0]
        np.testing.assert_allclose(solved, want, rtol=1e-8, atol=1e-10 * np.abs(want).max())


def test_a_few_large_eigenvalues_cost_a_shared_space_nothing():
    """Products are counted where they are taken."""
    size = 60
    matrix = with_spectrum(np.concatenate([1e4 * np.arange(1.0, 9.0), np.linspace(0.5, 1, size - 8)]))
    rows, taken = np.random.default_rng(5).normal(size=(10, size)), []

    def multiply(block):
        taken.append(len(block))
        return block @ matrix

    def products(block):
        return jax.pure_callback(multiply, jax.ShapeDtypeStruct(block.shape, block.dtype), block)

    solve = jax.jit(lambda block: block_cg(products, block, 1e-8, 500, lambda v: v))
    counts = {}
    for name, blocks in {"shared": [rows], "alone": list(rows[:, None])}.items():
        counts[name] = 0
        for block in blocks:
            taken.clear()
            solved = jax.block_until_ready(solve(jnp.asarray(block)))
            assert len(taken) == int(solved.iterations) + 1
            counts[name] += sum(taken)
    assert counts["shared"] < 0.4 * counts["alone"]


def test_in_float32_forms_are_as_near_as_from_spaces_of_their_own():
    """`bᵀx + xᵀr` of both against float64, in products of ROWS: what rounding leaves, and not more of them than alone."""
    errors, identity = [], jnp.eye(SIZE, dtype=jnp.float32)
    for seed, kind in enumerate(["independent", "dependent", "zero", "uneven"] * 5):
        for values in (DEFINITE["geometric"], DEFINITE["outliers"]):
            matrix = jnp.asarray(with_spectrum(values, seed), jnp.float32)
            rows = jnp.asarray(awkward(np.random.default_rng(seed).normal(size=(ROWS, SIZE)), kind), jnp.float32)
            exact, right = np.asarray(matrix, float), np.asarray(rows, float)
            want = np.sum(right * np.linalg.solve(exact, right.T).T, axis=1)
            solved = shared(matrix, rows, identity, 1e-5, 500)
            assert int(solved.iterations) < 500
            single = alone(matrix, rows, identity, 1e-5, 500)

            def error(x, r, rows=rows, want=want):
                form = np.asarray(jnp.sum(rows * x, axis=1) + jnp.sum(x * r, axis=1), float)
                return np.max(np.abs(form - want)[want > 0] / want[want > 0])

            errors.append([error(solved.solutions, solved.residuals), error(single, rows - single @ matrix)])
    shared_errors, alone_errors = np.array(errors).T
    assert np.median(shared_errors) <= 1.5 * np.median(alone_errors)
    assert shared_errors.max() <= 3 * alone_errors.max()


def test_what_is_zero_is_solved_by_zero_and_going_on_for_ever_is_harmless():
    matrix, rows = with_spectrum(DEFINITE["repeated"]), np.random.default_rng(6).normal(size=(ROWS, SIZE))
    nothing = shared(matrix, np.zeros((ROWS, SIZE)), np.eye(SIZE), 1e-8, 100)
    assert int(nothing.iterations) == 0
    assert not np.any(nothing.solutions)
    endless = shared(matrix, rows, np.eye(SIZE), 0.0, 400)
    np.testing.assert_allclose(endless.solutions, np.linalg.solve(matrix, rows.T).T, rtol=1e-10, atol=1e-10)
