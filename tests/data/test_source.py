"""What every source promises, over the one list."""

import dataclasses

import jax
import numpy as np
import pytest

from influence_ssl_jax.data import SOURCES, Arrays, Digits, Folder, Source, Synthetic, Tfds, ToInput, batches
from influence_ssl_jax.data.source import counted, digest, repeated_ids

KINDS = [*SOURCES, Arrays]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def source(request, prepared, photos) -> Source:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    described = {
        Digits: Digits(size=8, digits=20, blanks=0.1, noise=0.1),
        Tfds: Tfds("tiny_shapes", "train", str(prepared)),
        Folder: Folder(str(photos / "train"), str(photos / "fairface_label_train.csv")),
        Synthetic: Synthetic(count=12, size=5),
        Arrays: Arrays(images, labels=np.arange(10), columns={"even": [k % 2 == 0 for k in range(10)]}),
    }
    return described[request.param]


def test_a_source_is_a_frozen_dataclass_with_help_for_every_field(source):
    assert hash(source) == hash(source)
    assert dataclasses.is_dataclass(source)
    for field in dataclasses.fields(source):
        assert f"{field.name}: " in type(source).__doc__
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(source, field.name, None)


def test_opening_twice_gives_the_same_examples(source):
    first, second = source.open(), source.open()
    assert len(first) == len(second) > 8
    assert first.fingerprint() == second.fingerprint()
    for index in (0, 3, len(first) - 1):
        a, b = first.read(index), second.read(index)
        assert (a.index, a.id, a.label) == (b.index, b.id, b.label) == (index, a.id, a.label)
        np.testing.assert_array_equal(a.image, b.image)
        assert a.image.dtype == np.uint8
        assert a.image.ndim == 3


def test_attributes_have_one_row_per_example_in_its_order(source):
    opened = source.open()
    attributes = opened.attributes()
    assert attributes is not None
    assert len(attributes) == len(opened)
    if not isinstance(source, Tfds | Folder | Arrays):
        label = opened.read(5).label
        assert attributes["label"][5].as_py() == (-1 if label is None else label)


def test_every_example_arrives_once_or_is_named(source):
    opened = source.open()
    seen, missed = [], []
    for loaded in batches(opened, ToInput(4, 4), 4, jax.random.key(0)):
        assert loaded.batch.image.shape == (4, 4, 4, 3)
        seen += [int(k) for k in np.asarray(loaded.batch.index)[loaded.valid]]
        missed += [each.index for each in loaded.skipped]
    assert sorted(seen + missed) == list(range(len(opened)))
    assert len(missed) == (1 if isinstance(source, Tfds) else 0)


def test_digest_tells_the_boundaries_of_its_parts():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")


def test_counted_names_the_first_and_counts_all():
    assert counted("things", []) == ()
    assert counted("things", ["a", "b"]) == ("things: 2 (a, b)",)
    assert counted("things", list("abcde")) == ("things: 5 (a, b, c, …)",)
    assert repeated_ids(["x", "y", "x"]) == ("ids that name more than one example, told apart by the index: 1 (x)",)
    assert repeated_ids(["x", "y"]) == ()
