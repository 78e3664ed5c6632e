"""Power iteration on prescribed spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.linalg.krylov import largest_eigenvalue


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, 0.2, 0.0), (2.0, 2.0, 1.0, 0.5), (-4.0, 1.0, 0.3, 0.1), (0.0,) * 4])
def test_rises_to_the_largest_eigenvalue(spectrum):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    dense = jnp.asarray((rotation * np.asarray(spectrum)) @ rotation.T)
    found = [
        float(largest_eigenvalue(lambda rows: rows @ dense, jax.random.key(0), jnp.zeros(4), n)) for n in (2, 5, 60)
    ]
    assert found[0] <= found[1] + 1e-12
    assert found[1] <= found[2] + 1e-12
    np.testing.assert_allclose(found[2], np.abs(spectrum).max(), rtol=1e-9, atol=1e-12)
