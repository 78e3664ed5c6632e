"""Test images: what names them, and that none of them was trained on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from influence_ssl_jax.cli.console import Renderer
from influence_ssl_jax.cli.options import parse
from influence_ssl_jax.data import Digits, Folder, Parquet, Synthetic, Tfds
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.runs.prepare import load_encoder
from influence_ssl_jax.runs.pretrain import pretrain, with_statistics
from influence_ssl_jax.runs.settings import PretrainRun, Unseen
from influence_ssl_jax.runs.unseen import describe_test, find_repeated, leave_out, open_test
from influence_ssl_jax.train import RECIPES, Architecture, Probe, export
from tests.train.small import INPUT, Small, small


@pytest.fixture
def folders(tmp_path):
    """Two folders of images, each with a table of classes."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 6)):
        (tmp_path / name).mkdir()
        rows = ["file,kind"]
        for number in range(count):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
            rows.append(f"{number}.png,{'ab'[number % 2]}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    return tmp_path


def folder(root, name):
    return Folder(str(root / name), str(root / f"{name}.csv"), label_column="kind")


def test_test_images_are_a_split_a_path_a_table_or_a_list():
    assert describe_test(Tfds("cifar100", only="train.csv"), Unseen(split="test")) == Tfds("cifar100", "test")
    assert describe_test(Parquet("a.parquet"), Unseen(path="b.parquet")) == Parquet("b.parquet")
    assert describe_test(Digits(size=8), Unseen(only="ids.txt")) == Digits(size=8, only="ids.txt")
    assert describe_test(Digits(), Unseen()) is None
    with pytest.raises(DataError, match=r"--test.split is for source:tfds, and the images are those of source:digits"):
        describe_test(Digits(), Unseen(split="test"))
    with pytest.raises(DataError, match=r"--test.path is for source:folder and source:parquet and source:shards"):
        describe_test(Synthetic(), Unseen(path="faces"))


def test_images_that_are_trained_on_are_refused(folders):
    train = folder(folders, "train")
    opened = train.open()
    (folders / "two.txt").write_text("3.png\n7.png\n")
    with pytest.raises(DataError, match=r"Of 2 test images, 2 are training images too, the first: 3.png"):
        open_test(train, opened, Unseen(only=str(folders / "two.txt")))
    (folders / "others.txt").write_text("".join(f"{k}.png\n" for k in range(12) if k not in (3, 7)))
    rest = dataclasses.replace(train, only=str(folders / "others.txt"))
    test = open_test(rest, rest.open(), Unseen(only=str(folders / "two.txt")))
    assert test is not None
    assert list(test.ids()) == ["3.png", "7.png"]
    (folders / "both.csv").write_text("file,kind\ntest/0.png,a\ntrain/1.png,b\n")
    with pytest.raises(DataError, match="stored in files that are read for training too"):
        open_test(train, opened, Unseen(path=str(folders), table=str(folders / "both.csv")))


def test_images_under_other_names_are_found_by_their_bytes():
    trained = {b"1", b"2", b"3"}
    assert find_repeated(trained, [("a", b"2"), ("b", b"9"), ("c", b"3")]) == ("a", "c")
    assert find_repeated(trained, [("b", b"9")]) == ()
    with pytest.raises(DataError, match="Every one of the 2 test images has the bytes of a training image"):
        find_repeated(trained, [("a", b"2"), ("c", b"3")])


def test_other_classes_and_none_are_refused(folders):
    train = folder(folders, "train")
    (folders / "test.csv").write_text("file,kind\n" + "".join(f"{k}.png,{'bc'[k % 2]}\n" for k in range(6)))
    named = Unseen(path=str(folders / "test"), table=str(folders / "test.csv"))
    with pytest.raises(
        DataError, match=r"classes of the training images are a, b \(2\), those of the test images b, c"
    ):
        open_test(train, train.open(), named)
    without = Folder(str(folders / "train"))
    with pytest.raises(DataError, match="needs classes, and no training image has one"):
        open_test(without, without.open(), Unseen(path=str(folders / "test")))


def test_planted_duplicates_are_left_out_with_their_originals():
    source = Digits(size=8, digits=60, exact_duplicates=0.3, near_duplicates=0.3).open()
    train, test = leave_out(source, 0.2, seed=3)
    assert len(train) + len(test) == len(source)
    assert not set(train.ids()) & set(test.ids())
    assert 0.2 * len(source) <= len(test) <= 0.2 * len(source) + 1  # a duplicate of the last one may follow it
    attributes = source.attributes()
    assert attributes is not None
    every, inside = list(source.ids()), set(test.ids())
    sides = [
        (every[index] in inside, every[original] in inside)
        for index, original in enumerate(attributes["original"].to_pylist())
        if original >= 0
    ]
    assert len(sides) == 36
    assert all(copy == original for copy, original in sides)
    again = leave_out(source, 0.2, seed=3)[1]
    assert list(again.ids()) == list(test.ids()) != list(leave_out(source, 0.2, seed=4)[1].ids())
    with pytest.raises(DataError, match="leaves no image on one side"):
        leave_out(source, 0.001, seed=0)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="not both"):
        PretrainRun(Path("out"), leave_out=0.1, test=Unseen(split="test"))
    with pytest.raises(ValueError, match="from 0 to below 1, got 1"):
        PretrainRun(Path("out"), leave_out=1.0)
    with pytest.raises(ValueError, match="epochs 0 to 1000 of this run, got 1001"):
        PretrainRun(Path("out"), keep=(1000, 1001))


def test_what_is_typed_is_what_is_run():
    typed = ["--out", "o", "--test.split", "test", "--probe.every", "20", "--keep", "1", "2", "source:tfds"]
    settings = parse(PretrainRun, typed, "influence-ssl", "")
    assert (settings.test, settings.probe.every, settings.keep) == (Unseen(split="test"), 20, (1, 2))
    typed = ["--out", "o", "training:table3-byol", "--training.optimiser.scale-by-batch"]
    assert parse(PretrainRun, typed, "influence-ssl", "").training.optimiser.scale_by_batch


def test_statistics_are_those_of_the_source_unless_they_are_given():
    recipe = RECIPES["solo_learn_byol"]
    assert with_statistics(recipe, Tfds("cifar100")).architecture.std == (0.2673, 0.2564, 0.2762)
    assert with_statistics(recipe, Digits()).architecture.mean == (0.4914, 0.4822, 0.4465)
    given = dataclasses.replace(recipe, architecture=Architecture(mean=(0.5,), std=(0.2,)))
    assert with_statistics(given, Tfds("cifar100")) == given


def test_accuracies_are_of_test_images_and_kept_encoders_are_encoders(folders, monkeypatch):
    monkeypatch.setattr(export, "Pretrain", Small)
    training = small(SimCLR(0.5), epochs=2, batch_size=6)
    shutil.copy(folders / "train" / "4.png", folders / "test" / "0.png")
    named = Unseen(path=str(folders / "test"), table=str(folders / "test.csv"))
    settings = PretrainRun(
        folders / "run", folder(folders, "train"), training, INPUT, named, probe=Probe(linear=0), keep=(1,)
    )
    out = Console(width=300)
    with out.capture() as said:
        pretrain(settings, Renderer(out))
    assert "note: 1 of 6 test images have the bytes of a training image, the first: 0.png" in said.get()
    assert "Accuracies are those of 6 of 6 test images, by 12 training images." in said.get()
    assert "Learning rate 0.3 in batches of 6, not scaled by the batch" in said.get()
    assert "Channel statistics of cifar10, as none are given" in said.get()
    rows = [json.loads(line) for line in (folders / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["knn"] * 6 == round(row["knn"] * 6) for row in rows)
    described = json.loads((folders / "run" / "encoder.json").read_text())
    assert described["test"]["path"] == str(folders / "test")
    assert described["pretrain"]["architecture"]["mean"] == [0.4914, 0.4822, 0.4465]
    first, last = (load_encoder(folders / "run" / place) for place in ("encoders/epoch-1", "."))
    assert isinstance(first, Encoder)
    assert first.digest() != last.digest()


def test_images_that_are_left_out_are_said_to_be(folders, monkeypatch):
    monkeypatch.setattr(export, "Pretrain", Small)
    table = folders / "train.csv"
    table.write_text(table.read_text().replace("0.png,a", "0.png,", 1))
    training, out = small(SimCLR(0.5), epochs=1, batch_size=5), Console(width=300)
    run = PretrainRun(folders / "run", folder(folders, "train"), training, INPUT, leave_out=0.2, probe=Probe(linear=0))
    with out.capture() as said:
        pretrain(run, Renderer(out))
    assert "2 images are left out of training, and 10 are trained on." in said.get()
    assert "Accuracies are those of 2 of 2 test images, by 10 training images." in said.get()
    assert re.search(
        "(1 training and 0|0 training and 1) test images have no class; accuracies leave them out", said.get()
    )


def test_without_test_images_no_accuracy_is_printed(folders, monkeypatch):
    monkeypatch.setattr(export, "Pretrain", Small)
    out = Console(width=300)
    run = PretrainRun(folders / "run", folder(folders, "train"), small(SimCLR(0.5), epochs=1, batch_size=6), INPUT)
    with out.capture() as said:
        pretrain(run, Renderer(out))
    assert "No accuracies: they need test images" in said.get()
    assert "knn" not in said.get()
