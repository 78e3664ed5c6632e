import numpy as np
import pytest

from influence_ssl_jax.data import Arrays
from influence_ssl_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def test_examples_are_the_arrays():
    opened = Arrays(IMAGES, labels=[3, -1, 0, 1, 2], ids=list("abcde")).open()
    example = opened.read(2)
    assert (example.index, example.id, example.label) == (2, "c", 0)
    np.testing.assert_array_equal(example.image, IMAGES[2])
    assert opened.read(1).label is None
    assert opened.attributes() is None
    assert Arrays(IMAGES).open().read(4).id == "4"


def test_images_may_differ_in_size():
    opened = Arrays([np.zeros((2, 3)), np.ones((4, 4, 3))]).open()
    assert [opened.read(k).image.shape for k in (0, 1)] == [(2, 3), (4, 4, 3)]


def test_the_fingerprint_sees_pixels_order_ids_and_labels():
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    described = [
        Arrays(IMAGES), Arrays(changed), Arrays(IMAGES[::-1]), Arrays(IMAGES[:4]), Arrays(IMAGES, ids=list("abcde")),
        Arrays(IMAGES, labels=range(5)), Arrays(IMAGES.reshape(5, 2, 8, 3)), Arrays(IMAGES.astype(np.uint16)),
    ]  # fmt: skip
    assert len({each.open().fingerprint() for each in described}) == len(described)
    assert Arrays(IMAGES.copy()).open().fingerprint() == Arrays(IMAGES).open().fingerprint()


def test_ids_that_repeat_are_noted_and_kept():
    opened = Arrays(IMAGES, ids=["a", "b", "a", "c", "b"]).open()
    assert len(opened) == 5
    assert opened.notes() == ("ids that name more than one example, distinguished by the index: 2 (a, b)",)
    assert Arrays(IMAGES).open().notes() == ()


def test_lengths_and_types_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="got 2 labels for 5 images"):
        Arrays(IMAGES, labels=[1, 2]).open()
    with pytest.raises(DataError, match="got 1 ids for 5 images"):
        Arrays(IMAGES, ids=["a"]).open()
    with pytest.raises(DataError, match="column 'age' has 2 values for 5 images"):
        Arrays(IMAGES, columns={"age": [1, 2]}).open()
    for labels in ([0, 1, 2, 3, 2**31], [-2, 0, 0, 0, 0]):
        with pytest.raises(DataError, match=f"classes 0 to {2**31 - 1}, got {min(labels)} to {max(labels)}"):
            Arrays(IMAGES, labels=np.array(labels)).open()
    with pytest.raises(DataError, match="labels must be whole numbers, got dtype float64"):
        Arrays(IMAGES, labels=np.ones(5)).open()
    with pytest.raises(DataError, match="column 'age' must hold numbers, texts or dates, of one kind"):
        Arrays(IMAGES, columns={"age": [1, "x", None, {}, []]}).open()


def test_numbers_are_ids():
    assert Arrays(IMAGES, ids=np.arange(5)).open().ids() == ("0", "1", "2", "3", "4")
