import jax
import numpy as np
import pytest

from influence_ssl_jax.data import Synthetic, ToInput, batches
from influence_ssl_jax.errors import DataError


def test_a_million_images_are_reachable_without_being_made():
    source = Synthetic(count=1_000_000, size=4).open()
    assert len(source) == 1_000_000
    tail = np.arange(999_990, 1_000_000)
    loaded = list(batches(source, ToInput(4, 4), 8, jax.random.key(0), indices=tail))
    assert np.concatenate([each.batch.index for each in loaded])[:10].tolist() == tail.tolist()


def test_an_image_depends_on_its_number_and_seed_alone():
    one, other = Synthetic(count=10).open(), Synthetic(count=1000).open()
    np.testing.assert_array_equal(one.read(7).image, other.read(7).image)
    assert (one.read(7).image != one.read(8).image).any()
    assert (one.read(7).image != Synthetic(count=10, seed=1).open().read(7).image).any()
    assert one.fingerprint() != other.fingerprint()


def test_an_image_is_a_grating_of_the_documented_form():
    rng, image = np.random.default_rng([4, 3]), Synthetic(count=10, size=8, classes=4, seed=4).open().read(3).image
    y, x = np.mgrid[:8, :8] / 8
    along = rng.uniform(1, 3) * (x * np.cos(3 * np.pi / 4) + y * np.sin(3 * np.pi / 4))
    waves = np.stack([np.cos(2 * np.pi * (along + phase)) for phase in rng.uniform(0, 1, 3)], axis=2)
    want = np.clip(0.5 + 0.35 * waves + 0.05 * rng.standard_normal((8, 8, 3)), 0, 1)
    np.testing.assert_allclose(image / 255, want, atol=0.51 / 255)


def test_the_class_is_the_orientation():
    source = Synthetic(count=40, size=32, classes=2).open()
    for index in range(40):
        levels = source.read(index).image.astype(float)
        across, down = np.abs(np.diff(levels, axis=1)).mean(), np.abs(np.diff(levels, axis=0)).mean()
        assert (across > down) == (source.read(index).label == 0)


def test_counts_are_positive():
    with pytest.raises(DataError, match="at least 1, got 0, 16 and 10"):
        Synthetic(count=0)
