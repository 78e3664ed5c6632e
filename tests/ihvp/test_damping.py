"""What damping is in numbers: relative to a mean eigenvalue, absolute, and of a block without curvature."""

import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.ihvp import Damping


def test_a_block_without_curvature_gets_a_millionth_of_the_strongest_ones():
    means = {"strong": jnp.asarray(4.0), "weak": jnp.asarray(1e-3), "dead": jnp.asarray(0.0)}
    resolved = {name: float(value) for name, value in Damping(0.2).resolve(means).items()}
    assert resolved == {"strong": pytest.approx(0.8), "weak": pytest.approx(2e-4), "dead": pytest.approx(0.2 * 4e-6)}


def test_an_absolute_damping_is_that_number_whatever_the_curvature():
    for means in (jnp.asarray(3.0), {"a": jnp.asarray(3.0), "b": jnp.asarray(0.0)}):
        np.testing.assert_array_equal(Damping(absolute=0.7).resolve(means), 0.7)


def test_a_relative_damping_is_that_multiple_of_the_mean():
    assert float(Damping(0.3).resolve(jnp.asarray(5.0))) == pytest.approx(1.5)
