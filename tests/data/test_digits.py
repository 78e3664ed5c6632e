import numpy as np
import pytest
from sklearn.datasets import load_digits

from influence_ssl_jax.data import Digits
from influence_ssl_jax.errors import DataError


@pytest.fixture(scope="module")
def opened():
    return Digits().open()


@pytest.fixture(scope="module")
def truth(opened):
    return {name: np.array(column) for name, column in opened.attributes().to_pydict().items()}


def test_the_planted_shares_are_the_known_ones(truth):
    kinds, counts = np.unique(truth["planted"], return_counts=True)
    expected = {"none": 1797, "exact_duplicate": 90, "near_duplicate": 90, "blank": 36, "noise": 54}
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == expected


def test_duplicates_name_their_original(opened, truth):
    for kind in ("exact_duplicate", "near_duplicate"):
        for index in np.flatnonzero(truth["planted"] == kind):
            original = truth["original"][index]
            copy, first = (opened.read(int(k)) for k in (index, original))
            assert truth["planted"][original] == "none"
            assert copy.label == first.label
            assert copy.id.startswith(first.id)
            assert (copy.image == first.image).all() == (kind == "exact_duplicate")
    repeated = truth["original"][truth["original"] >= 0]
    assert len(set(repeated)) == len(repeated) == 180


def test_no_other_images_are_equal(opened, truth):
    blank = truth["planted"] == "blank"
    images = np.stack([opened.read(k).image for k in np.flatnonzero(~blank).tolist()]).reshape(int((~blank).sum()), -1)
    assert len(images) - len(np.unique(images, axis=0)) == 90


def test_near_duplicates_are_nearer_to_their_original_than_to_other_digits(opened, truth):
    pixels = np.stack([opened.read(k).image[..., 0] for k in range(len(opened))]).astype(float).reshape(len(opened), -1)
    digits = np.flatnonzero(truth["planted"] == "none")
    near = np.flatnonzero(truth["planted"] == "near_duplicate")
    changed = np.array([np.abs(pixels[k] - pixels[truth["original"][k]]).mean() for k in near])
    others = np.array([np.median(np.abs(pixels[k] - pixels[digits]).mean(axis=1)) for k in near])
    assert (changed < others).all()


def test_blank_images_are_uniform_and_noise_is_not(opened, truth):
    spread = np.array([opened.read(k).image.std() for k in range(len(opened))])
    assert (spread[truth["planted"] == "blank"] == 0).all()
    assert (spread[truth["planted"] == "noise"] > 60).all()  # a uniform level has √((256²−1)/12) = 73.9
    assert set(truth["label"][np.isin(truth["planted"], ["blank", "noise"])]) == {None}
    assert opened.read(int(np.flatnonzero(truth["planted"] == "blank")[0])).label is None


def test_digits_are_scikit_learns(opened, truth):
    images, labels = load_digits(return_X_y=True)
    small = Digits(size=8).open()
    for index in np.flatnonzero(truth["planted"] == "none")[:50]:
        example = small.read(int(index))
        number = int(example.id.removeprefix("digit_"))
        np.testing.assert_array_equal(example.image[..., 2], np.round(images[number].reshape(8, 8) * 255 / 16))
        assert example.label == labels[number] == truth["label"][index]


def test_the_seed_decides_what_is_planted_and_the_order():
    small = {"size": 8, "digits": 40}
    names = [
        [opened.read(k).id for k in range(len(opened))]
        for opened in (Digits(**small).open(), Digits(**small, seed=1).open())
    ]
    assert names[0] != names[1]
    assert (
        Digits(**small).open().fingerprint()
        == Digits(**small).open().fingerprint()
        != Digits(**small, seed=1).open().fingerprint()
    )


def test_impossible_shares_are_refused():
    with pytest.raises(DataError, match="digits=1798"):
        Digits(digits=1798)
    with pytest.raises(DataError, match="each digit is repeated at most once"):
        Digits(exact_duplicates=0.6, near_duplicates=0.6)
    with pytest.raises(DataError, match="not be negative"):
        Digits(noise=-0.1)
