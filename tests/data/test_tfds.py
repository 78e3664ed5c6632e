import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from influence_ssl_jax.data import Tfds, UnreadableExample
from influence_ssl_jax.data.tfds import column, image_feature
from influence_ssl_jax.errors import DataError


@pytest.fixture
def opened(prepared):
    return Tfds("tiny_shapes", "train", str(prepared)).open()


def readable(opened) -> list:
    broken = [k for k, year in enumerate(opened.attributes()["taken/year"].to_pylist()) if year == 2004]
    return [opened.read(k) for k in range(len(opened)) if k not in broken]


def test_examples_are_what_was_written(opened):
    assert len(opened) == 11
    examples = readable(opened)
    assert len(examples) == 10
    for example in examples:
        number = int(example.id.removeprefix("shape_"))
        expected = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        np.testing.assert_array_equal(example.image, expected)
        assert example.label == number % 2


def test_attributes_are_the_scalars_with_classes_by_name(opened):
    attributes = opened.attributes()
    assert attributes.column_names == ["label", "taken/year", "taken/indoors"]
    for example in readable(opened):
        number = int(example.id.removeprefix("shape_"))
        assert attributes.slice(example.index, 1).to_pylist() == [
            {"label": ("circle", "square")[number % 2], "taken/indoors": number % 3 == 0, "taken/year": 2000 + number}
        ]


def test_splits_and_slices(prepared):
    whole, part = (Tfds("tiny_shapes", split, str(prepared)).open() for split in ("train", "train[3:7]"))
    assert len(part) == 4
    assert part.attributes().equals(whole.attributes().slice(3, 4))
    assert len(Tfds("tiny_shapes:1.0.0", "train+test", str(prepared)).open()) == 14
    assert part.fingerprint() != whole.fingerprint()


def test_features_may_be_named(prepared):
    opened = Tfds("tiny_shapes", "test", str(prepared), image="image", label="taken/year").open()
    assert sorted(opened.read(k).label for k in range(3)) == [0, 1, 2]  # numbered: a year is no class of its own
    assert sorted(opened.labels()) == [0, 1, 2]
    captions = Tfds("tiny_shapes", "test", str(prepared), label="caption").open()
    assert {captions.read(k).label for k in range(3)} == {0}
    with pytest.raises(DataError, match="label feature 'image' is Image"):
        Tfds("tiny_shapes", "test", str(prepared), label="image").open()
    with pytest.raises(
        DataError, match="no label feature 'colour'; the data set has image_id, image, label, taken/year"
    ):
        Tfds("tiny_shapes", "test", str(prepared), label="colour").open()
    with pytest.raises(DataError, match="no image feature 'picture'"):
        Tfds("tiny_shapes", "test", str(prepared), image="picture").open()


def test_the_image_feature_is_found_or_asked_for():
    picture, depth = tfds.features.Image(), tfds.features.Image(shape=(4, 4, 1), dtype=np.float32)
    assert image_feature({"label": tfds.features.ClassLabel(num_classes=2), "left": picture}, None) == "left"
    assert image_feature({"left": picture, "image": picture}, None) == "image"
    assert image_feature({"left": picture, "right": picture}, "right") == "right"
    with pytest.raises(DataError, match="this one has several: left, right; name one"):
        image_feature({"left": picture, "right": picture}, None)
    with pytest.raises(DataError, match=r"'depth' is .*, not an image of 8 or 16 bits"):
        image_feature({"depth": depth}, None)
    with pytest.raises(DataError, match=r"'name' is .*, not an image"):
        image_feature({"image": picture, "name": tfds.features.Text()}, "name")


def test_classes_without_names_are_numbers():
    unnamed, named = tfds.features.ClassLabel(num_classes=3), tfds.features.ClassLabel(names=["a", "b", "c"])
    assert column(unnamed, [2, None, 0]).to_pylist() == [2, None, 0]
    assert column(named, [2, None, 0]).to_pylist() == ["c", None, "a"]


def test_a_data_set_without_images_is_refused(prepared):
    with pytest.raises(DataError, match="this one has none, so it is not an image data set"):
        Tfds("tiny_numbers", "train", str(prepared)).open()


def test_an_unknown_split_names_the_others(prepared):
    with pytest.raises(DataError, match="got 'val'"):
        Tfds("tiny_shapes", "val", str(prepared)).open()


@pytest.mark.parametrize("split", ["train[50000:]", "train[10:5]", "train[10:9]", "train[:0]"])
def test_a_split_without_examples_is_refused_with_the_sizes(prepared, split):
    with pytest.raises(
        DataError,
        match=r"(has no examples; choose from train \(11 examples\), test \(3 examples\)|incompatible with 11 examples)",
    ):
        Tfds("tiny_shapes", split, str(prepared)).open()


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'cifar11'; similar names are cifar10"):
        Tfds("cifar11", data_dir=str(tmp_path)).open()
    with pytest.raises(DataError, match="cannot open 'No Such Name'"):
        Tfds("No Such Name", data_dir=str(tmp_path)).open()


def test_a_data_set_that_is_not_prepared_says_what_to_run(tmp_path):
    command = rf"tfds build mnist --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(DataError, match=command) as refused:
        Tfds("mnist", data_dir=str(tmp_path)).open()
    assert "does not have it" in str(refused.value)


def test_a_data_set_in_another_format_says_so(prepared, tmp_path):
    folder = tmp_path / "tiny_shapes" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (prepared / "tiny_shapes" / "1.0.0").glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="has it in another format"):
        Tfds("tiny_shapes", data_dir=str(tmp_path)).open()


@pytest.fixture
def copied(prepared, tmp_path) -> pathlib.Path:
    shutil.copytree(prepared / "tiny_shapes", tmp_path / "tiny_shapes")
    (file,) = (tmp_path / "tiny_shapes" / "1.0.0").glob("*-train.array_record*")
    return file


def test_the_fingerprint_follows_the_files_but_not_their_place(opened, copied, tmp_path):
    moved = Tfds("tiny_shapes", "train", str(tmp_path)).open()
    assert moved.fingerprint() == opened.fingerprint()
    with copied.open("ab") as file:
        file.write(b"more")
    assert moved.fingerprint() != opened.fingerprint()


def test_missing_files_are_named(copied, tmp_path):
    copied.unlink()
    with pytest.raises(DataError, match=f"incomplete: 1 are missing, the first .*{copied.name}"):
        Tfds("tiny_shapes", "train", str(tmp_path)).open()


def test_a_damaged_image_is_named(opened):
    (broken,) = [k for k, year in enumerate(opened.attributes()["taken/year"].to_pylist()) if year == 2004]
    with pytest.raises(UnreadableExample, match=rf"example {broken} \(shape_004\): .*truncated|broken") as refused:
        opened.read(broken)
    assert refused.value.skipped.id == "shape_004"


def test_damaged_records_are_named_and_have_no_attributes(copied, tmp_path, opened):
    content = bytearray(copied.read_bytes())
    inside = content.find(b"\x89PNG", content.find(b"\x89PNG") + 1)  # the second record
    content[inside + 20 : inside + 40] = bytes(20)
    copied.write_bytes(content)
    damaged = Tfds("tiny_shapes", "train", str(tmp_path)).open()
    lost = [k for k, year in enumerate(damaged.attributes()["taken/year"].to_pylist()) if year is None]
    assert lost == [1]
    for k in lost:
        with pytest.raises(UnreadableExample, match=f"example {k} .*the record is damaged"):
            damaged.read(k)
    for example in readable(opened):
        if example.index not in lost:
            np.testing.assert_array_equal(damaged.read(example.index).image, example.image)


def test_tensorflow_is_not_imported(prepared):
    code = (
        "import sys; from influence_ssl_jax.data import Tfds; "
        f"source = Tfds('tiny_shapes', 'test', {str(prepared)!r}).open(); source.read(0); source.attributes(); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_splits_with_a_common_record_overlap(prepared):
    def of(split):
        return Tfds("tiny_shapes", split, str(prepared)).open()

    assert of("train").overlaps(of("train[10:]"))
    assert of("train[:6]").overlaps(of("train[5:7]"))
    assert not of("train[:5]").overlaps(of("train[5:]"))
    assert not of("train").overlaps(of("test"))
    assert of("train[:5]").overlaps(of("train[5:]+train[:1]"))
