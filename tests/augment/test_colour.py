"""Colour transforms against `colorsys`, PIL and torchvision's formulas restated in float64."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from influence_ssl_jax.augment.colour import ColourJitter, Grayscale, Solarise, adjust, luminance, shift_hue

BYTES = np.random.default_rng(0).integers(0, 256, size=(6, 7, 3), dtype=np.uint8)
BYTES[0, :4] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [200, 200, 10]]
IMAGE = BYTES / 255
KEY = jax.random.key(0)
adjust_jit = jax.jit(adjust)
hue_jit = jax.jit(shift_hue)


def grey(image: np.ndarray) -> np.ndarray:
    return image @ [[0.2989], [0.587], [0.114]]


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    out = np.empty_like(image)
    for index in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[index])
        out[index] = colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)
    return out


def torchvision_adjust(
    image: np.ndarray, factors: tuple[float, ...], shift: float, order: tuple[int, ...]
) -> np.ndarray:
    for operation in order:
        if operation == 3:
            image = hue(image, shift)
        else:
            other = [np.zeros_like(image), np.full_like(image, grey(image).mean()), grey(image)][operation]
            image = np.clip(factors[operation] * image + (1 - factors[operation]) * other, 0, 1)
    return image


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_jitter_of_given_amounts_in_every_order(order):
    factors, shift = (1.3, 0.4, 1.7), -0.15
    ours = adjust_jit(jnp.asarray(IMAGE), jnp.asarray(factors), jnp.asarray(shift), jnp.asarray(order))
    np.testing.assert_allclose(ours, torchvision_adjust(IMAGE, factors, shift, order), rtol=0, atol=1e-12)


@given(shift=st.floats(-0.5, 0.5))
def test_hue_equals_colorsys(shift):
    np.testing.assert_allclose(hue_jit(jnp.asarray(IMAGE), jnp.asarray(shift)), hue(IMAGE, shift), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("position", "enhancer"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize("factor", [0.3, 1.6])
def test_blends_equal_pils_to_its_rounding(position, enhancer, factor):
    theirs = np.asarray(enhancer(Image.fromarray(BYTES)).enhance(factor)) / 255
    factors = jnp.ones(3).at[position].set(factor)
    ours = adjust_jit(jnp.asarray(IMAGE), factors, jnp.asarray(0.0), jnp.arange(4))
    # PIL rounds the luminance and the result to whole levels.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 / 255)


def test_drawn_amounts_have_their_ranges_and_orders():
    """A grey image of one level shows the brightness factor alone; factor and contrast commute on it."""
    jitter = ColourJitter(brightness=0.5)
    image = jnp.full((2, 2, 3), 0.5)
    levels = jax.jit(jax.vmap(jitter, (0, None)))(jax.random.split(KEY, 1000), image)[:, 0, 0, 0]
    assert levels.min() == pytest.approx(0.25, abs=2e-3)
    assert levels.max() == pytest.approx(0.75, abs=2e-3)
    assert levels.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(12 * 1000))


def test_strength_above_one_never_inverts():
    image = jnp.full((2, 2, 3), 0.5)
    levels = jax.jit(jax.vmap(ColourJitter(brightness=3.0), (0, None)))(jax.random.split(KEY, 200), image)
    assert levels.min() >= 0


def test_jitter_without_strength_keeps_the_image():
    np.testing.assert_allclose(ColourJitter()(KEY, jnp.asarray(IMAGE)), IMAGE, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"hue": 0.6}, {"contrast": -0.1}])
def test_impossible_strengths_are_refused(wrong):
    with pytest.raises(ValueError, match="hue at most"):
        ColourJitter(**wrong)


def test_grayscale_equals_pils_to_its_rounding_and_torchvisions_formula():
    ours = Grayscale()(KEY, jnp.asarray(IMAGE))
    np.testing.assert_allclose(ours, np.broadcast_to(grey(IMAGE), IMAGE.shape), rtol=0, atol=1e-14)
    theirs = np.asarray(Image.fromarray(BYTES).convert("L"))[..., None] / 255
    np.testing.assert_allclose(ours, np.broadcast_to(theirs, IMAGE.shape), rtol=0, atol=1 / 255)


def test_grey_images_have_no_colour_to_change():
    image = jnp.asarray(IMAGE[..., :1])
    assert jnp.array_equal(Grayscale()(KEY, image), image)
    np.testing.assert_allclose(ColourJitter(saturation=0.8, hue=0.3)(KEY, image), image, atol=1e-12)


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match=r"1 \(grey\) or 3 \(RGB\) channels, got 4"):
        luminance(jnp.zeros((2, 2, 4)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_solarise_is_pils(dtype):
    image = jnp.asarray(BYTES, dtype) / 255
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(BYTES)))
    assert np.array_equal(np.rint(np.asarray(Solarise()(KEY, image)) * 255), theirs)
