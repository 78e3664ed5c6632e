"""Gauss and Gauss–Radau bounds hold, and are those of the textbook formula."""

import functools

import jax
import jax.numpy as jnp
import matfree.decomp
import numpy as np
import pytest

from influence_ssl_jax import randomness
from influence_ssl_jax.linalg.quadrature import (
    Tridiagonal,
    anchor_at_zero,
    gauss,
    quadratic_form_bounds,
    radau,
    spectral_density,
)

SIZE = 36


@functools.partial(jax.jit, static_argnames="steps")
def bounds(matrix, starts, damping, width=0.05, steps=40):
    return quadratic_form_bounds(lambda rows: rows @ matrix, starts, damping, jax.random.key(0), width, steps)


def with_spectrum(values, seed):
    orthogonal = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (orthogonal * values) @ orthogonal.T


def truth(matrix, starts, damping):
    values, vectors = np.linalg.eigh(matrix)
    return ((starts @ vectors) ** 2 / (np.maximum(values, 0) + float(damping))).sum(axis=1)


SPECTRA = {
    "geometric": 10.0 ** -np.linspace(0, 6, SIZE),
    "linear": np.linspace(0, 1, SIZE),
    "few": np.repeat([1.0, 0.3, 0.0], SIZE // 3),
    "outliers": np.concatenate([[1.0, 0.9, 0.2], np.full(SIZE - 3, 1e-4)]),
    "low_rank": np.concatenate([10.0 ** -np.linspace(0, 4, 12), np.zeros(SIZE - 12)]),
    "zero": np.zeros(SIZE),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("relative", [1e-2, 0.1, 10.0])
def test_bounds_hold_and_are_as_narrow_as_asked(spectrum, relative):
    rng = np.random.default_rng(1)
    values = SPECTRA[spectrum]
    matrix, starts = with_spectrum(values, 2), rng.normal(size=(6, SIZE))
    damping = jnp.asarray(relative * max(values.mean(), 1e-3))
    interval = bounds(matrix, starts, damping)
    want = truth(matrix, starts, damping)
    assert (interval.lower <= want).all()
    assert (want <= interval.upper).all()
    assert (interval.upper - interval.lower <= 0.0501 * interval.upper).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_each_bound_is_the_textbook_quadrature(steps):
    """Lower: `‖g‖² e₁ᵀ(T + λ)⁻¹e₁` with T by matfree. Upper: the same with T extended so that 0 is an eigenvalue."""
    matrix = with_spectrum(SPECTRA["linear"] + 0.01, 3)
    start, damping = np.random.default_rng(4).normal(size=SIZE), 0.02
    interval = bounds(matrix, start[None], jnp.asarray(damping), width=1e-9, steps=steps)
    tridiagonal = np.asarray(matfree.decomp.tridiag_sym(steps + 1)(lambda v: matrix @ v, start).J_small)
    scale = start @ start

    def corner(t):
        return scale * np.linalg.inv(t + damping * np.eye(len(t)))[0, 0]

    np.testing.assert_allclose(interval.lower[0], corner(tridiagonal[:steps, :steps]), rtol=1e-10)
    beta = tridiagonal[steps, steps - 1]
    extended = tridiagonal.copy()
    extended[steps, steps] = beta**2 * np.linalg.inv(tridiagonal[:steps, :steps])[-1, -1]
    np.testing.assert_allclose(np.linalg.eigvalsh(extended)[0], 0, atol=1e-12)
    np.testing.assert_allclose(interval.upper[0], corner(extended), rtol=1e-10)


@jax.jit
def cancelling_bounds(one, other, starts, damping, key, width):
    """C = DᵀD with D the small difference of two large matrices, as the Jacobians of nearly equal views are."""

    def products(rows):
        moved = rows @ one.T - rows @ other.T
        return moved @ one - moved @ other

    return quadratic_form_bounds(products, starts, damping, key, width, 48)


def cancelling(seed, rank=12, size=48, apart=1e-2):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(rank, size)).astype(np.float32)
    other = one + (apart * np.logspace(0, -1.5, rank)[:, None] * rng.normal(size=(rank, size))).astype(np.float32)
    difference = one.astype(float) - other.astype(float)
    starts = (rng.normal(size=(4, rank)) @ difference).astype(np.float32)
    return one, other, starts, difference.T @ difference


@pytest.mark.parametrize("seed", range(3))
def test_asking_for_a_narrower_interval_does_not_lose_a_wider_one(seed):
    """Once the space is exhausted, further steps are rounding and their slack grows; earlier bounds still hold."""
    one, other, starts, matrix = cancelling(seed)
    damping = np.float32(0.3 * np.linalg.eigvalsh(matrix).mean())
    want, relative_widths = truth(matrix, starts.astype(float), damping), {}
    for width in (0.5, 0.05, 1e-3, 1e-6):
        got = cancelling_bounds(*map(jnp.asarray, (one, other, starts)), damping, jax.random.key(seed), width)
        assert (got.lower <= want * (1 + 1e-6)).all()
        assert (want <= got.upper * (1 + 1e-6)).all()
        relative_widths[width] = np.asarray((got.upper - got.lower) / want)
    assert np.isfinite(relative_widths[0.5]).all()
    for narrower, wider in ((0.05, 0.5), (1e-3, 0.05), (1e-6, 0.05)):
        assert (relative_widths[narrower] <= 1.001 * np.maximum(relative_widths[wider], narrower)).all(), (
            relative_widths
        )


def test_a_large_eigenvalue_that_is_seen_late_does_not_make_a_finite_bound_infinite():
    """Of a part of 1e-9 of g: 32 roundoffs of it are more than λ, so that once it is seen nothing is known any more."""
    values = np.append(np.linspace(0.5, 1.5, SIZE - 1), 1e6)
    start = np.append(np.random.default_rng(0).normal(size=SIZE - 1), 1e-8)
    want, widths = truth(np.diag(values), start[None], 0.5), {}
    for width in (0.5, 1e-6):
        got = bounds(*(jnp.asarray(side, jnp.float32) for side in (np.diag(values), start[None], 0.5)), width=width)
        assert got.lower <= want
        assert want <= got.upper
        widths[width] = float((got.upper - got.lower)[0] / want[0])
    assert widths[0.5] < 0.5
    assert widths[1e-6] <= widths[0.5]


def test_a_rounding_error_of_rank_one_is_not_overlooked():
    """Random signs miss F = e(e₁ + e₂)ᵀ half of the time, two of them a quarter; normal ones say |s₁ + s₂|."""
    size, hidden = 36, 3e-3
    matrix = with_spectrum(np.linspace(0.1, 1, size), 0)
    start = np.random.default_rng(1).normal(size=(1, size))
    krylov = np.stack([start[0], matrix @ start[0], matrix @ matrix @ start[0]])
    basis, triangular = np.linalg.qr(krylov.T)
    basis = (basis * np.sign(np.diagonal(triangular))).T  # Lanczos' own vectors, signs included
    pair, onto = basis[0] + basis[1], np.linalg.svd(basis)[2][-1]

    @jax.jit
    def slack(key):
        def products(rows):
            kink = hidden * (rows @ pair)[:, None] * onto[None]
            exact = jnp.min(jnp.linalg.norm(rows[:, None] - basis[None], axis=2), axis=1) < 1e-8
            return rows @ matrix + jnp.where(exact[:, None], 0.0, kink)  # single Lanczos vectors show none of it

        return quadratic_form_bounds(products, jnp.asarray(start), jnp.asarray(0.1), key, 0.0, 2).slack[0]

    slacks = jax.lax.map(slack, jax.random.split(jax.random.key(0), 400))
    assert np.mean(np.asarray(slacks) < 2 * hidden * 2**0.5) < 0.02


def test_a_zero_vector_has_the_interval_zero():
    interval = bounds(with_spectrum(SPECTRA["linear"], 0), np.zeros((6, SIZE)), jnp.asarray(0.1))
    assert (interval.lower == 0).all()
    assert (interval.upper == 0).all()


def test_no_violation_in_float32_over_ten_thousand_draws():
    """Against float64, at every stage of the iteration: wide bounds after few steps, rounding-tight ones after many.

    The one program here that runs longer than it compiles: optimised, as users have it.
    """
    optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    quick = jax.jit(bounds, compiler_options=optimised)
    violations, draws, widths = 0, 0, {1e-3: [], 0.1: []}
    rng = np.random.default_rng(5)
    for seed, values in enumerate(SPECTRA.values()):
        matrix = with_spectrum(values, seed)
        coloured = matrix @ rng.normal(size=(SIZE, 300)) + 1e-3 * rng.normal(size=(SIZE, 300))
        starts = np.concatenate([coloured.T, rng.normal(size=(120, SIZE))])
        for relative, tight in widths.items():
            damping = relative * max(values.mean(), 1e-3)
            want = truth(matrix, starts, damping)
            for width in (0.05, 1e-6):
                single = (jnp.asarray(array, jnp.float32) for array in (matrix, starts, damping))
                interval = quick(*single, width=width)
                violations += int(np.sum((interval.lower > want) | (want > interval.upper)))
                draws += len(want)
            tight.append(float(np.max((interval.upper - interval.lower) / want)))
    assert draws >= 10_000
    assert violations == 0
    assert max(widths[0.1]) < 0.02
    assert max(widths[1e-3]) < 2  # λ = 1e-5 ‖C‖: a hundred roundoffs of ‖C‖ are as large as λ, and the bounds say so


SMALL = 24


def definite(low=0.01, seed=0):
    orthogonal = np.linalg.qr(np.random.default_rng(seed).normal(size=(SMALL, SMALL)))[0]
    return (orthogonal * np.linspace(low, 1, SMALL)) @ orthogonal.T


def lanczos(matrix, start, steps):
    """T of so many steps, with the coupling to what comes next: α and β."""
    rows, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        moved = matrix @ rows[-1]
        alphas.append(rows[-1] @ moved)
        for _ in range(2):
            moved = moved - np.array(rows).T @ (np.array(rows) @ moved)
        betas.append(np.linalg.norm(moved))
        rows.append(moved / betas[-1])
    return np.array(alphas), np.array(betas)


@pytest.mark.parametrize("slack", [0.0, 0.04])
def test_the_node_of_radau_is_minus_the_slack_and_its_damping_smaller_by_it(slack):
    """`e₁ᵀ(T' + (λ − η) I)⁻¹e₁`, T' extended by the row that makes −η its smallest eigenvalue; two rows are not in use."""
    steps, damping = 5, 0.3
    alpha, beta = lanczos(definite(), np.random.default_rng(1).normal(size=SMALL), steps)
    inner = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    extended = np.zeros((steps + 1, steps + 1))
    extended[:steps, :steps] = inner
    extended[steps, steps - 1] = extended[steps - 1, steps] = beta[-1]
    tail = np.linalg.inv(inner + slack * np.eye(steps))[-1, -1]
    extended[steps, steps] = -slack + beta[-1] ** 2 * tail
    np.testing.assert_allclose(np.linalg.eigvalsh(extended)[0], -slack, atol=1e-12)
    unused = np.full(2, np.nan)
    held = Tridiagonal(
        jnp.asarray(np.r_[alpha, unused])[None], jnp.asarray(np.r_[beta, unused])[None], jnp.asarray(steps)
    )
    want = np.linalg.inv(extended + (damping - slack) * np.eye(steps + 1))[0, 0]
    np.testing.assert_allclose(radau(held, jnp.asarray(damping), jnp.full(1, slack)), [want], rtol=1e-10)
    below = np.linalg.inv(inner + damping * np.eye(steps))[0, 0]
    np.testing.assert_allclose(gauss(held, jnp.full(1, damping)), [below], rtol=1e-10)
    assert np.isinf(radau(held, jnp.asarray(0.08), jnp.full(1, 0.04))).all()


def test_products_that_are_not_those_of_a_symmetric_matrix_are_measured_and_allowed_for():
    """A skew part of norm s leaves a residual of the recurrence that no count of roundoffs tells of."""
    rng = np.random.default_rng(2)
    skew = rng.normal(size=(SMALL, SMALL))
    skew = 3e-4 * (skew - skew.T) / np.linalg.norm(skew - skew.T, 2)
    matrix, starts, damping = definite(), rng.normal(size=(20, SMALL)), 0.1
    interval = jax.jit(
        lambda starts: quadratic_form_bounds(
            lambda rows: rows @ jnp.asarray(matrix + skew), starts, jnp.asarray(damping), jax.random.key(0), 1e-9, 12
        )
    )(jnp.asarray(starts))
    want = np.sum(starts * np.linalg.solve(matrix + damping * np.eye(SMALL), starts.T).T, axis=1)
    assert (interval.lower <= want).all()
    assert (want <= interval.upper).all()
    assert (np.asarray(interval.slack) > 3e-4).all()
    assert (np.asarray(interval.upper - interval.lower) < 0.5 * want).all()


@functools.partial(jax.jit, static_argnames="steps")
def density_of(matrix, key, steps):
    return spectral_density(lambda rows: rows @ matrix, key, matrix[0], 4, steps)


@pytest.mark.parametrize("steps", [3, 10, 25])
def test_a_node_at_zero_bounds_dimensions_from_below_and_gauss_from_above(steps):
    """10 drawn matrices of rank 20 of 60 by 4 probes each; with 25 steps both are exact."""
    rng = np.random.default_rng(steps)
    for number in range(10):
        basis = np.linalg.qr(rng.normal(size=(60, 60)))[0]
        eigenvalues = np.append(10.0 ** rng.uniform(-3, 0, 20), np.zeros(40))
        matrix, key = jnp.asarray((basis * eigenvalues) @ basis.T), jax.random.key(number)
        density = density_of(matrix, key, steps)
        values, counts = anchor_at_zero(density.t, 60.0)
        np.testing.assert_allclose(counts.reshape(4, -1).sum(axis=1), 15)
        signs = np.concatenate([randomness.signs(each, (1, 60), matrix.dtype) for each in jax.random.split(key, 4)])
        weights = np.mean((signs @ basis) ** 2, axis=0)
        assert counts[values == 0].sum() >= weights[20:].sum() * (1 - 1e-9)
        for damping in 10.0 ** np.arange(-5, 2):
            exact = np.sum(weights * eigenvalues / (eigenvalues + damping))
            low = np.sum(counts * values / (values + damping))
            high = np.sum(density.counts * density.values / (density.values + damping))
            assert low <= exact * (1 + 1e-7)
            assert exact <= high * (1 + 1e-7)
            if steps == 25:
                np.testing.assert_allclose([low, high], exact, rtol=1e-6)
