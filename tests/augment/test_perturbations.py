"""The published perturbations, spelled out, and which of two views is the clean one."""

import jax
import numpy as np

from influence_ssl_jax.augment.blur import GaussianBlur
from influence_ssl_jax.augment.colour import ColourJitter, Grayscale
from influence_ssl_jax.augment.crop import HorizontalFlip, RandomResizedCrop, RandomShift
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS, PRETRAINING
from influence_ssl_jax.augment.transform import AgainstClean, Augmented, Randomly, Sequential

CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), None, None, "bicubic")
FLIP, JITTER, BLUR, GRAY = HorizontalFlip(), ColourJitter(0.8, 0.8, 0.8, 0.2), GaussianBlur((0.1, 2.0), 13), Grayscale()


def against(*transforms):
    return AgainstClean(Sequential(transforms))


def test_the_perturbations_are_those_of_table_4():
    """Of arXiv 2412.17170, in the strengths of its Table 1; every part is applied, none by chance."""
    assert {
        "noise": GaussianNoise(0.2, 0.0, (1.0,), "none"),
        "crop": against(CROP),
        "flip_blur": against(FLIP, BLUR),
        "flip_jitter_blur": against(FLIP, JITTER, BLUR),
        "flip_jitter_gray": against(FLIP, JITTER, GRAY),
        "flip_gray_blur": against(FLIP, GRAY, BLUR),
    } == PERTURBATIONS


def test_the_supervised_views_are_a_shift_and_half_of_the_time_a_flip():
    assert PRETRAINING["supervised"] == Augmented((Sequential((RandomShift(4), Randomly(0.5, FLIP))),))


def test_pretraining_crops_a_twelfth_to_the_whole_of_an_image():
    for name in ("table1", "simclr", "byol", "barlow_twins"):
        for transform in PRETRAINING[name].transforms:
            assert transform.transforms[0] == CROP
            assert transform.transforms[-1] == Randomly(0.5, FLIP)


def test_the_first_view_is_the_image_as_it_is():
    image = np.random.default_rng(0).uniform(size=(4, 5, 3))
    clean, noisy = GaussianNoise(0.2)(jax.random.key(0), jax.numpy.asarray(image))
    np.testing.assert_array_equal(clean, image)
    assert 0.1 < np.std(noisy - image) < 0.3


def test_the_second_view_is_the_transformed_image():
    image = np.random.default_rng(0).uniform(size=(4, 5, 3))
    clean, flipped = against(FLIP)(jax.random.key(0), jax.numpy.asarray(image))
    np.testing.assert_array_equal(clean, image)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
