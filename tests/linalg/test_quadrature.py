"""Gauss and Gauss–Radau bounds hold, and are those of the textbook formula."""

import functools

import jax
import jax.numpy as jnp
import matfree.decomp
import numpy as np
import pytest

from influence_ssl_jax.linalg.quadrature import quadratic_form_bounds

SIZE = 36


@functools.partial(jax.jit, static_argnames=("width", "steps"))
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
    found = bounds(matrix, starts, damping)
    want = truth(matrix, starts, damping)
    assert (found.lower <= want).all()
    assert (want <= found.upper).all()
    assert (found.upper - found.lower <= 0.0501 * found.upper).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_each_bound_is_the_textbook_quadrature(steps):
    """Lower: `‖g‖² e₁ᵀ(T + λ)⁻¹e₁` with T by matfree. Upper: the same with T extended so that 0 is an eigenvalue."""
    matrix = with_spectrum(SPECTRA["linear"] + 0.01, 3)
    start, damping = np.random.default_rng(4).normal(size=SIZE), 0.02
    found = bounds(matrix, start[None], jnp.asarray(damping), width=1e-9, steps=steps)
    tridiagonal = np.asarray(matfree.decomp.tridiag_sym(steps + 1)(lambda v: matrix @ v, start).J_small)
    scale = start @ start

    def corner(t):
        return scale * np.linalg.inv(t + damping * np.eye(len(t)))[0, 0]

    np.testing.assert_allclose(found.lower[0], corner(tridiagonal[:steps, :steps]), rtol=1e-10)
    beta = tridiagonal[steps, steps - 1]
    extended = tridiagonal.copy()
    extended[steps, steps] = beta**2 * np.linalg.inv(tridiagonal[:steps, :steps])[-1, -1]
    np.testing.assert_allclose(np.linalg.eigvalsh(extended)[0], 0, atol=1e-12)
    np.testing.assert_allclose(found.upper[0], corner(extended), rtol=1e-10)


def test_a_zero_vector_has_the_interval_zero():
    found = bounds(with_spectrum(SPECTRA["linear"], 0), np.zeros((6, SIZE)), jnp.asarray(0.1))
    assert (found.lower == 0).all()
    assert (found.upper == 0).all()


def test_no_violation_in_float32_over_ten_thousand_draws():
    """Against float64, at every stage of the iteration: wide bounds after few steps, rounding-tight ones after many."""
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
                found = bounds(*single, width=width)
                violations += int(np.sum((found.lower > want) | (want > found.upper)))
                draws += len(want)
            tight.append(float(np.max((found.upper - found.lower) / want)))
    assert draws >= 10_000
    assert violations == 0
    assert max(widths[0.1]) < 0.02
    assert max(widths[1e-3]) < 2  # λ = 1e-5 ‖C‖: a hundred roundoffs of ‖C‖ are as large as λ, and the bounds say so
