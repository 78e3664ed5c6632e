"""What every source promises, over the one list."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from influence_ssl_jax.data import (
    SOURCES,
    Arrays,
    Digits,
    Folder,
    Parquet,
    Shards,
    Source,
    Synthetic,
    Tfds,
    ToInput,
    batches,
)
from influence_ssl_jax.data.examples import Skipped, digest, note_names, repeated_ids
from influence_ssl_jax.errors import DataError, printable
from tests.data.kept import write_parquet, write_shards

KINDS = [*SOURCES, Arrays]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def source(request, prepared, photos, tmp_path, monkeypatch) -> Source:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_parquet(tmp_path / "rows", broken=4)
    write_shards(tmp_path / "tars", broken=4)
    described = {
        Digits: Digits(size=8, digits=20, blanks=0.1, noise=0.1),
        Tfds: Tfds("tiny_shapes", "train", str(prepared)),
        Folder: Folder(str(photos / "train"), str(photos / "fairface_label_train.csv")),
        Parquet: Parquet(str(tmp_path / "rows")),
        Shards: Shards(str(tmp_path / "tars")),
        Synthetic: Synthetic(count=12, size=5),
        Arrays: Arrays(images, labels=np.arange(10), columns={"even": [k % 2 == 0 for k in range(10)]}),
    }
    return described[request.param]


def test_a_source_is_a_frozen_dataclass_with_help_for_every_field(source):
    assert hash(source) == hash(source)
    assert dataclasses.is_dataclass(source)
    for field in dataclasses.fields(source):
        assert any(f"{field.name}: " in (kind.__doc__ or "") for kind in type(source).__mro__)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(source, field.name, None)


def test_opening_twice_gives_the_same_examples(source):
    first, second = source.open(), source.open()
    assert len(first) == len(second) > 8
    assert first.fingerprint() == second.fingerprint()
    assert first.members() == second.members()
    for index in (0, 3, len(first) - 1):
        a, b = first.read(index), second.read(index)
        assert (a.index, a.id, a.label) == (b.index, b.id, b.label) == (index, a.id, a.label)
        np.testing.assert_array_equal(a.image, b.image)
        assert a.image.dtype == np.uint8
        assert a.image.ndim == 3


def test_attributes_have_one_row_per_example_in_its_order(source):
    opened = source.open()
    attributes = opened.attributes()
    assert attributes is None or len(attributes) == len(opened)
    if isinstance(source, Digits | Synthetic):
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
    assert len(missed) == (1 if isinstance(source, Tfds | Parquet | Shards) else 0)


def test_ids_and_classes_are_known_without_decoding_and_are_those_of_the_examples(source):
    opened = source.open()
    read = list(opened.read_many(range(len(opened))))
    assert list(opened.ids()) == [each.id for each in read]
    labels = opened.labels()
    for each in read:
        assert isinstance(each, Skipped) or labels[each.index] == (-1 if each.label is None else each.label)


def test_only_what_a_file_names_is_used_and_read_as_it_was(source, tmp_path):
    whole = source.open()
    kept = [1, 2, 6, len(whole) - 1]
    (tmp_path / "only.txt").write_text("".join(f"{whole.ids()[k]}\n" for k in reversed(kept)))
    opened = dataclasses.replace(source, only=str(tmp_path / "only.txt")).open()
    assert len(opened) == 4
    for here, there in enumerate(kept):
        a, b = opened.read(here), whole.read(there)
        assert (a.index, a.id, a.label) == (here, b.id, b.label)
        np.testing.assert_array_equal(a.image, b.image)
    assert opened.labels().tolist() == whole.labels()[kept].tolist()
    attributes, columns = opened.attributes(), whole.attributes()
    if columns is None:
        assert attributes is None
    else:
        planted = list(whole.truth())
        assert attributes.drop_columns(planted) == columns.drop_columns(planted).take(kept)
    assert opened.fingerprint() != whole.fingerprint()
    assert opened.members() != whole.members()
    assert f"4 of {len(whole)} examples are used" in opened.notes()[-1]


def test_a_data_set_by_absolute_paths_is_found_from_any_folder(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    whole = source.open()
    (tmp_path / "only.txt").write_text("".join(f"{name}\n" for name in whole.ids()[:5]))
    paths = {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}
    relative = {k: os.path.relpath(v) for k, v in paths.items() if isinstance(v, str) and os.path.isabs(v)}
    given = dataclasses.replace(source, **relative, only="../only.txt")
    opened, placed = given.open(), given.absolute()
    expected = opened.fingerprint(), opened.members()
    monkeypatch.chdir("/")
    moved = placed.open()
    assert (moved.fingerprint(), moved.members()) == expected
    if relative:
        with pytest.raises(DataError):
            dataclasses.replace(source, **relative).open()


@pytest.mark.parametrize(
    "empty", [Folder(""), Folder(".", table=""), Parquet(""), Shards(""), Tfds(""), Digits(only="")]
)
def test_an_empty_path_or_name_is_refused_and_never_the_current_folder(empty):
    with pytest.raises(DataError, match=r"(path|table|name|only) is an empty text"):
        empty.open()


def test_only_the_source_that_plants_something_tells_the_truth(source):
    assert source.open().truth() == (("planted", "original") if isinstance(source, Digits) else ())


def test_digest_tells_the_boundaries_of_its_parts():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")


def test_text_is_printable_and_unchanged_where_it_was():
    assert printable("a/ü 中 \u200d.png") == "a/ü 中 \u200d.png"
    assert printable("\x1b]0;x\x07\r\n\u202egnp") == "\\x1b]0;x\\x07\\r\\n\\u202egnp"
    assert printable("\udcff.png") == "\\xff.png"
    assert note_names("files", ["\x1b[2J"]) == ("files: 1 (\\x1b[2J)",)


def test_counted_names_the_first_and_counts_all():
    assert note_names("things", []) == ()
    assert note_names("things", ["a", "b"]) == ("things: 2 (a, b)",)
    assert note_names("things", list("abcde")) == ("things: 5 (a, b, c, …)",)
    assert repeated_ids(["x", "y", "x"]) == ("ids that name more than one example, distinguished by the index: 1 (x)",)
    assert repeated_ids(["x", "y"]) == ()
