"""Crops and resizes against PIL's, on floating-point images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from influence_ssl_jax.augment.crop import HorizontalFlip, RandomResizedCrop, RandomShift, resample

IMAGE = np.random.default_rng(0).uniform(size=(12, 10, 3)).astype(np.float32)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
resample_jit = jax.jit(resample, static_argnums=(5, 6))


@given(data=st.data(), interpolation=st.sampled_from(sorted(FILTERS)), size=st.sampled_from([(12, 10), (5, 17)]))
def test_equals_pils_crop_and_resize(data, interpolation, size):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 10))
    top, left = data.draw(st.integers(0, 12 - height)), data.draw(st.integers(0, 10 - width))
    ours = resample_jit(
        jnp.asarray(IMAGE, jnp.float64), *map(jnp.asarray, (top, left, height, width)), size, interpolation
    )
    cut = IMAGE[top : top + height, left : left + width]
    channels = [Image.fromarray(cut[..., c].copy()).resize(size[::-1], FILTERS[interpolation]) for c in range(3)]
    np.testing.assert_allclose(ours, np.stack([np.asarray(c) for c in channels], -1), rtol=0, atol=5e-7)


@pytest.fixture(scope="module")
def rectangles():
    crop = RandomResizedCrop(scale=(0.08, 1.0))
    keys = jax.random.split(jax.random.key(0), 4000)
    return np.stack(jax.jit(jax.vmap(lambda key: crop.rectangle(key, 32, 32)))(keys), -1)


def test_rectangles_lie_inside_and_have_the_distribution_of_torchvisions(rectangles):
    top, left, height, width = rectangles.T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == (left + width).max() == 32
    drawn = np.asarray([_torchvision_rectangle(rng, 32, 32) for rng in map(np.random.default_rng, range(4000))])
    # Two samples of 4,000: means agree to five standard errors.
    for ours, theirs in zip(rectangles.T, drawn.T, strict=True):
        error = np.sqrt((ours.var() + theirs.var()) / 4000)
        assert abs(ours.mean() - theirs.mean()) < 5 * error
        assert ours.std() == pytest.approx(theirs.std(), rel=0.06)


def _torchvision_rectangle(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params, restated; the fallback's ratio lies inside the range on a square image."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return 0, 0, height, width


@pytest.mark.parametrize(
    ("shape", "ratio", "expected"),
    [
        ((4, 40), (3 / 4, 4 / 3), (0, 17, 4, 5)),
        ((40, 4), (3 / 4, 4 / 3), (17, 0, 5, 4)),
        ((20, 18), (0.5, 0.5001), (0, 4, 20, 10)),
    ],
)
def test_where_no_draw_fits_the_largest_central_rectangle_is_taken(shape, ratio, expected):
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=ratio)
    assert tuple(int(value) for value in crop.rectangle(jax.random.key(3), *shape)) == expected


def test_crop_to_another_size_is_the_resampled_rectangle():
    crop = RandomResizedCrop(height=6, width=15, interpolation="bilinear")
    key, image = jax.random.key(5), jnp.asarray(IMAGE)
    out = jax.jit(crop)(key, image)
    assert out.shape == (6, 15, 3)
    expected = resample(image, *crop.rectangle(key, 12, 10), (6, 15), "bilinear")
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.1, 1.5)}, {"ratio": (2.0, 1.0)}]
)
def test_ranges_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="is a range"):
        RandomResizedCrop(**wrong)


def test_shifts_are_uniform_crops_of_the_framed_image():
    image = jnp.asarray(IMAGE)
    framed = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    crops = [framed[top : top + 12, left : left + 10] for top in range(5) for left in range(5)]
    drawn = jax.jit(jax.vmap(RandomShift(2), (0, None)))(jax.random.split(jax.random.key(1), 500), image)
    which = [[np.array_equal(one, crop) for crop in crops].index(True) for one in np.asarray(drawn)]
    counts = np.bincount(which, minlength=25)
    assert counts.min() > 0
    assert ((counts - 20) ** 2 / 20).sum() < 60  # χ² with 24 degrees of freedom: probability 6e-5


def test_flip_is_numpys():
    assert jnp.array_equal(HorizontalFlip()(jax.random.key(0), jnp.asarray(IMAGE)), np.flip(IMAGE, 1))
