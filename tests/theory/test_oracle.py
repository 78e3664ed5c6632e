"""The oracle of the theory: the measure of error itself."""

import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.theory import oracle


def test_errors_are_relative_to_the_largest_magnitude_of_either_sign():
    np.testing.assert_allclose(oracle.relative(-2.2, -2.0), 0.1, rtol=1e-12)
    expected = jnp.asarray([-4.0, 1.0, 2.0])
    np.testing.assert_allclose(oracle.relative(expected + jnp.asarray([0.1, -0.4, 0.2]), expected), 0.1, rtol=1e-12)
    assert oracle.relative(0.0, 0.0) == 0
