import tracemalloc

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from influence_ssl_jax.data.to_input import ToInput, UnusableImage
from influence_ssl_jax.errors import DataError


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smoothed(image: np.ndarray, size: int) -> np.ndarray:
    """Linear resampling along axis 0 by normalised triangle weights of half-width max(1, in/out)."""
    ratio = image.shape[0] / size
    reach = max(1.0, ratio)
    centers = (np.arange(size) + 0.5) * ratio
    weights = np.clip(1 - np.abs(np.arange(image.shape[0])[None] + 0.5 - centers[:, None]) / reach, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, image.astype(np.float64), axes=1)


def test_an_image_that_is_an_input_passes_bit_for_bit():
    image = drawn(7, 9, 3)
    np.testing.assert_array_equal(ToInput(7, 9)(image), image)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (16, 20), (3, 31)])
def test_stretched_bilinear_is_the_textbook_triangle_filter(height, width):
    image = drawn(10, 14, 3)
    expected = smoothed(smoothed(image, height).swapaxes(0, 1), width).swapaxes(0, 1)
    result = ToInput(height, width, crop="stretch")(image)
    assert np.abs(result - expected).max() <= 1.01  # Pillow rounds after each axis


def test_center_keeps_the_largest_middle_part():
    image = drawn(8, 14, 3)
    np.testing.assert_array_equal(ToInput(8, 8)(image), image[:, 3:11])
    np.testing.assert_array_equal(ToInput(4, 4)(image), ToInput(4, 4, crop="stretch")(image[:, 3:11]))


def test_pad_keeps_everything_between_bars():
    image = drawn(4, 8, 3)
    padded = ToInput(8, 8, crop="pad", background=7)(image)
    np.testing.assert_array_equal(padded[2:6], image)
    assert (padded[:2] == 7).all()
    assert (padded[6:] == 7).all()


def test_filters_are_pillows():
    image = drawn(9, 9, 3)
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        expected = np.asarray(Image.fromarray(image).resize((5, 6), getattr(Image.Resampling, name.upper())))
        np.testing.assert_array_equal(ToInput(6, 5, resize=name, crop="stretch")(image), expected)


def test_grey_and_colour():
    grey = drawn(4, 4)
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(ToInput(4, 4)(image), np.stack([grey] * 3, axis=-1))
        np.testing.assert_array_equal(ToInput(4, 4, channels=1)(image), grey[..., None])
    colour = drawn(4, 4, 3)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(ToInput(4, 4, channels=1)(colour)[..., 0] - luma).max() <= 0.51


def test_alpha_lies_over_the_background():
    image = drawn(4, 4, 4)
    alpha = image[..., 3:] / 255
    expected = np.round(image[..., :3] * alpha + 200 * (1 - alpha))
    np.testing.assert_array_equal(ToInput(4, 4, background=200)(image), expected)
    np.testing.assert_array_equal(ToInput(4, 4)(image[..., [0, 3]])[..., 1], np.round(image[..., 0] * alpha[..., 0]))


@given(st.sampled_from([np.uint16, np.float16, np.float32, np.float64, np.int64, np.int16]))
def test_every_depth_of_the_same_picture_is_the_same_input(dtype):
    image = drawn(5, 6, 3)
    if dtype == np.uint16:
        stored = image.astype(np.uint16) * 257
    elif np.issubdtype(dtype, np.floating):
        stored = (image / 255).astype(dtype)
    else:
        stored = image.astype(dtype)
    np.testing.assert_array_equal(ToInput(5, 6)(stored), image)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_images_may_hold_fewer_bits(bits):
    image = drawn(5, 6, 3)
    highest = 2**bits - 1
    stored = np.round(image.astype(np.float64) * highest / 255).astype(np.uint16)
    np.testing.assert_array_equal(ToInput(5, 6, bits=bits)(stored), image)
    stored[0, 0, 0] = highest + 1 if bits < 16 else highest
    if bits < 16:
        with pytest.raises(UnusableImage, match=f"values up to {highest + 1}, which {bits} bits do not hold"):
            ToInput(5, 6, bits=bits)(stored)


def test_what_rounds_into_the_range_is_in_it():
    image = np.array([[-1e-7, 1.0000002, 0.5]], np.float32)
    assert ToInput(1, 3, channels=1)(image)[0, :, 0].tolist() == [0, 255, 128]
    with pytest.raises(UnusableImage, match=r"must be in 0…1, got 0…1\.002"):
        ToInput(1, 3)(np.array([[0, 1.002, 0.5]]))


def test_no_step_makes_arrays_that_are_larger_than_the_image():
    """Of a transparent image and of one of 16 bits, each of 12 MB: at most twice that on top (float64: ten times)."""
    for image in (np.zeros((1500, 2000, 4), np.uint8), np.zeros((1500, 2000, 2), np.uint16)):
        tracemalloc.start()
        ToInput(8, 8)(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * image.nbytes + 2**25


def test_booleans_are_black_and_white():
    np.testing.assert_array_equal(ToInput(1, 2, channels=1)(np.array([[True, False]]))[..., 0], [[255, 0]])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_any_size_fits(height, width, out_height, out_width):
    for crop in ("center", "stretch", "pad"):
        flat = ToInput(out_height, out_width, crop=crop, background=9)(np.full((height, width), 9, np.uint8))
        assert flat.shape == (out_height, out_width, 3)
        assert (flat == 9).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((2, 2, 3), np.nan), "non-finite pixels: 12 of 12"),
        (np.array([[0.5, np.inf]]), "non-finite pixels: 1 of 2"),
        (np.array([[0.5, 1.5]]), "floating-point pixels must be in 0…1, got 0.5…1.5"),
        (np.array([[-1, 300]]), "integer pixels must be in 0…255, got -1…300"),
        (np.zeros((3, 8, 8)), r"got shape \[3, 8, 8\]"),
        (np.zeros((8,)), r"got shape \[8\]"),
        (np.zeros((0, 8, 3)), r"got shape \[0, 8, 3\]"),
        (np.zeros((2, 2), complex), "pixels are numbers, got dtype complex128"),
    ],
)
def test_what_is_no_image_says_why(image, reason):
    with pytest.raises(UnusableImage, match=reason):
        ToInput(4, 4)(image)


def test_impossible_settings_are_refused(monkeypatch):
    with pytest.raises(DataError, match="at least one pixel, got height=0"):
        ToInput(0, 4)
    with pytest.raises(DataError, match="grey level 0…255, got 256"):
        ToInput(4, 4, background=256)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user, whose types nobody checks
    with pytest.raises(DataError, match="channels must be one of 1, 3; got 4"):
        ToInput(4, 4, channels=4)
    with pytest.raises(DataError, match=r"resize must be one of nearest, .*; got 'area'"):
        ToInput(4, 4, resize="area")
    with pytest.raises(DataError, match=r"height must be a whole number, got 4\.0"):
        ToInput(4.0, 4)


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (37, 37), (9, 8)])
def test_the_shorter_side_is_resized_before_the_centre_is_cut(size):
    """As torchvision's Resize(16) and CenterCrop(12): the longer side is rounded down, the margin to the nearest."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (int(16 * length / min(size)) for length in size)
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 12) / 2), round((width - 12) / 2)
    want = whole[top : top + 12, left : left + 12]
    np.testing.assert_array_equal(ToInput(12, 12, resize="bicubic", shorter=16)(image), want)
    assert (ToInput(12, 12, resize="bicubic")(image) != want).any()


def test_a_shorter_side_belongs_to_a_centre_that_it_holds():
    for settings in ({"shorter": 11}, {"shorter": 16, "crop": "pad"}, {"shorter": 16, "crop": "stretch"}):
        with pytest.raises(DataError, match=r"shorter needs crop='center' and at least the size of the input"):
            ToInput(12, 12, **settings)
