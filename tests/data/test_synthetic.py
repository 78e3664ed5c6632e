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


def test_the_class_is_the_orientation():
    source = Synthetic(count=40, size=32, classes=2).open()
    for index in range(40):
        levels = source.read(index).image.astype(float)
        across, down = np.abs(np.diff(levels, axis=1)).mean(), np.abs(np.diff(levels, axis=0)).mean()
        assert (across > down) == (source.read(index).label == 0)


def test_counts_are_positive():
    with pytest.raises(DataError, match="at least 1, got 0, 16 and 10"):
        Synthetic(count=0)
