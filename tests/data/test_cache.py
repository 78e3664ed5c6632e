import jax
import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, Digits, ToInput, batches, cached
from influence_ssl_jax.errors import DataError

INPUT = ToInput(6, 6)


def test_the_cache_holds_what_the_source_would_give():
    images = np.random.default_rng(0).random((7, 9, 8, 3))
    images[2, 0, 0, 0] = np.inf
    source = Arrays(images, labels=np.arange(7), ids=list("abcdefg"), columns={"age": list(range(7))}).open()
    kept = cached(source, INPUT)
    for fresh, held in zip(
        batches(source, INPUT, 4, jax.random.key(0)), batches(kept, INPUT, 4, jax.random.key(0)), strict=True
    ):
        np.testing.assert_array_equal(fresh.batch.image, held.batch.image)
        np.testing.assert_array_equal(fresh.batch.index, held.batch.index)
        np.testing.assert_array_equal(fresh.batch.label, held.batch.label)
        assert fresh.ids == held.ids
        assert fresh.skipped == held.skipped
    assert kept.attributes() is source.attributes()
    assert kept.notes() == source.notes()


def test_images_are_decoded_once():
    source = Digits(size=8, digits=10).open()
    kept = cached(source, INPUT)
    source.read = source.read_many = None
    assert len(list(batches(kept, INPUT, 4, jax.random.key(0)))) > 0


def test_the_fingerprint_names_the_transform():
    source = Digits(size=8, digits=10).open()
    prints = {source.fingerprint(), cached(source, INPUT).fingerprint(), cached(source, ToInput(5, 5)).fingerprint()}
    assert len(prints) == 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"12 images of 6×6×3 need .* GiB allowed"):
        cached(Arrays(np.zeros((12, 6, 6))).open(), INPUT, max_bytes=12 * 108 - 1)
