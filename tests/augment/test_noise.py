"""Gaussian noise has its mean, its standard deviation, its unit and its clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from influence_ssl_jax.augment.noise import GaussianNoise

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(16, 16, 3)))
KEYS = jax.random.split(jax.random.key(0), 30)


def draw(noise: GaussianNoise, image: jax.Array = IMAGE) -> np.ndarray:
    views = jax.jit(jax.vmap(noise, (0, None)))(KEYS, image)
    assert views.dtype == image.dtype
    assert views.shape == (30, 2, *image.shape)
    assert (np.asarray(views[:, 0]) == np.asarray(image)).all()
    return np.asarray(views[:, 1]) - np.asarray(image)


def test_noise_is_standard_normal_after_standardising_in_its_unit():
    std = (0.25, 1.0, 4.0)
    standard = (draw(GaussianNoise(0.2, 0.1, std)) / np.asarray(std) - 0.1) / 0.2
    for channel in range(3):
        assert scipy.stats.kstest(standard[..., channel].ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(standard.reshape(-1, 3).T)
    np.testing.assert_allclose(correlation, np.eye(3), atol=5 / np.sqrt(30 * 256))


def test_default_is_the_published_perturbation():
    assert GaussianNoise() == GaussianNoise(sigma=0.2, mean=0.0, std=(1.0,), clip="none")
    noisy = draw(GaussianNoise()) + np.asarray(IMAGE)
    assert noisy.min() < 0 < 1 < noisy.max()


def test_clip_keeps_pixels_in_the_unit_interval():
    free, clipped = (draw(GaussianNoise(0.5, clip=clip)) + np.asarray(IMAGE) for clip in ("none", "unit"))
    np.testing.assert_allclose(clipped, np.clip(free, 0, 1), atol=1e-15)


def test_single_precision_images_stay_single():
    draw(GaussianNoise(), IMAGE.astype(jnp.float32))


@pytest.mark.parametrize(
    ("wrong", "message"), [({"sigma": 0.0}, "sigma must be positive"), ({"std": (1.0, 0.0)}, "std must be positive")]
)
def test_noise_without_spread_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GaussianNoise(**wrong)


def test_units_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="std needs 1 or 3 entries for this image, got 2"):
        GaussianNoise(std=(1.0, 2.0))(KEYS[0], IMAGE)
