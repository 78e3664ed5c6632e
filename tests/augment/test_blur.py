"""Gaussian blur against scipy's separable correlation with mirrored borders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.augment.blur import GaussianBlur, blur

IMAGE = np.random.default_rng(0).uniform(size=(9, 7, 3))
blur_jit = jax.jit(blur, static_argnums=2)


@given(sigma=st.floats(0.1, 3.0), kernel_size=st.sampled_from([1, 5, 13]))
def test_equals_scipy(sigma, kernel_size):
    offsets = np.arange(kernel_size) - kernel_size // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = scipy.ndimage.correlate1d(IMAGE, kernel, axis=0, mode="mirror")
    expected = scipy.ndimage.correlate1d(expected, kernel, axis=1, mode="mirror")
    ours = blur_jit(jnp.asarray(IMAGE), jnp.asarray(sigma), kernel_size)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_width_is_drawn_from_its_range():
    """The centre of a blurred point falls with sigma: drawn centres lie between those of the ends of the range."""
    point = jnp.zeros((9, 9, 1)).at[4, 4, 0].set(1.0)
    blurred = jax.jit(jax.vmap(GaussianBlur((0.5, 2.0), 9), (0, None)))(jax.random.split(jax.random.key(0), 200), point)
    narrow, wide = (blur_jit(point, jnp.asarray(sigma), 9)[4, 4, 0] for sigma in (0.5, 2.0))
    centres = np.asarray(blurred[:, 4, 4, 0])
    assert wide <= centres.min() < 1.2 * wide
    assert 0.8 * narrow < centres.max() <= narrow


def test_kernels_wider_than_the_image_are_refused():
    with pytest.raises(ValueError, match="kernel_size=13 needs images larger than 6 pixels"):
        GaussianBlur()(jax.random.key(0), jnp.zeros((6, 20, 3)))


@pytest.mark.parametrize(
    ("wrong", "message"), [({"sigma": (0.0, 1.0)}, "sigma is a range"), ({"kernel_size": 4}, "odd")]
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GaussianBlur(**wrong)
