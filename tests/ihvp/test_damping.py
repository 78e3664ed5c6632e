"""What damping is in numbers: relative to a mean eigenvalue, absolute, and of a block without curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.ihvp import Damping
from influence_ssl_jax.ihvp.backend import Spectrum
from influence_ssl_jax.linalg.quadrature import anchor_at_zero, spectral_density


def test_a_block_without_curvature_gets_a_millionth_of_the_strongest_ones():
    means = {"strong": jnp.asarray(4.0), "weak": jnp.asarray(1e-3), "dead": jnp.asarray(0.0)}
    resolved = {name: float(value) for name, value in Damping(0.2).resolve(means).items()}
    assert resolved == {"strong": pytest.approx(0.8), "weak": pytest.approx(2e-4), "dead": pytest.approx(0.2 * 4e-6)}


def test_an_absolute_damping_is_that_number_whatever_the_curvature():
    for means in (jnp.asarray(3.0), {"a": jnp.asarray(3.0), "b": jnp.asarray(0.0)}):
        np.testing.assert_array_equal(Damping(absolute=0.7).resolve(means), 0.7)


def test_a_relative_damping_is_that_multiple_of_the_mean():
    assert float(Damping(0.3).resolve(jnp.asarray(5.0))) == pytest.approx(1.5)


@pytest.mark.parametrize("damping", [Damping(effective_dimension=0.3), Damping(0.1, relative_to="nonzero")])
def test_an_estimated_spectrum_says_how_far_its_damping_varies(damping):
    """16 probes of a matrix of rank 20 of 60, with exact quadrature: the jackknife and the spread of 100 estimates agree."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    eigenvalues = np.append(2.0 ** -np.arange(20), 0.0)

    def estimated():
        weights = (rng.choice([-1.0, 1.0], (16, 60)) @ basis) ** 2 / 16
        counts = np.append(weights[:, :20], weights[:, 20:].sum(axis=1, keepdims=True), axis=1)
        return Spectrum(jnp.asarray(np.tile(eigenvalues, 16)), jnp.asarray(counts.ravel()), rank=50, probes=16)

    spectra = [estimated() for _ in range(100)]
    found = [np.log(float(damping.resolve_by_spectrum(each))) for each in spectra]
    errors = [damping.error_by_spectrum(each) for each in spectra[:30]]
    assert 0.7 < np.sqrt(np.mean(np.square(errors))) / np.std(found) < 1.4
    assert damping.error_by_spectrum(spectra[0]._replace(probes=None)) is None


@functools.partial(jax.jit, static_argnames="steps")
def density_of(diagonal, key, steps):
    return spectral_density(lambda rows: rows * diagonal[None], key, diagonal, 3, steps)


@pytest.mark.parametrize("damping", [Damping(effective_dimension=0.3), Damping(0.1, relative_to="nonzero")])
@pytest.mark.parametrize("steps", [6, 12, 30])
def test_quadrature_bounds_hold_the_damping_of_the_probes_themselves(damping, steps):
    """20 drawn diagonal matrices of rank 24 of 80, for which every vector of signs has the exact dimension."""
    rng, widths = np.random.default_rng(steps), []
    for number in range(20):
        eigenvalues = np.append(10.0 ** rng.uniform(-3, 0, 24), np.zeros(56))
        diagonal = jnp.asarray(rng.permutation(eigenvalues))
        density = density_of(diagonal, jax.random.key(number), steps)
        exact = float(damping.resolve_by_spectrum(Spectrum(jnp.asarray(eigenvalues), jnp.ones(80))))
        for rank in (60, 24):  # the most that it can be
            bounds = damping.bounds_by_spectrum(Spectrum(density.values, density.counts, rank, None, 3, density.t))
            assert bounds is not None
            assert bounds[0] * (1 - 1e-9) <= exact <= bounds[1] * (1 + 1e-9)
            if damping.effective_dimension:  # at the lower bound, the quadrature from below has the dimension
                points, numbers = anchor_at_zero(density.t, 80.0)
                values, counts = points[points > 0], numbers[points > 0]
                wanted = rank * damping.effective_dimension
                assert np.sum(counts * values / (values + bounds[0])) >= min(wanted, counts.sum()) * (1 - 1e-9)
        widths.append(bounds[1] / bounds[0] - 1)
    assert max(widths) < 1e-6 if steps == 30 else min(widths) > 1e-3
