"""What the commands check of a data set before they work, and how its attributes come into the table."""

import dataclasses

import numpy as np
import pytest

from influence_ssl_jax.data import Arrays, Digits, Synthetic, ToInput, depth_notes, require_classes
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.losses import Supervised
from influence_ssl_jax.runs.pretrain import pretrain
from influence_ssl_jax.runs.score import rename_attributes
from influence_ssl_jax.runs.settings import PretrainRun
from influence_ssl_jax.train import tiny

IMAGES = np.zeros((6, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        (
            Synthetic(count=24, size=8, classes=12),
            r"24 images, 0 have none and 4 have a larger one \(the largest is 11\)",
        ),
        (Digits(size=8, digits=20, blanks=0.1, noise=0.1), "26 images, 4 have none and 0 have a larger one"),
    ],
)
def test_supervised_training_without_classes_is_refused_before_the_first_step(source, counts, tmp_path):
    training = dataclasses.replace(tiny(Supervised()), epochs=1)
    with pytest.raises(DataError, match=f"needs a class 0…9 for every image: of {counts}"):
        pretrain(PretrainRun(tmp_path / "run", source, training, ToInput(8, 8)))
    assert not (tmp_path / "run").exists()


def test_the_counts_are_of_every_kind():
    require_classes(Arrays(IMAGES, labels=[0, 9, 1, 2, 3, 4]).open(), 10)
    with pytest.raises(DataError, match=r"6 images, 1 have none and 2 have a larger one \(the largest is 12\)"):
        require_classes(Arrays(IMAGES, labels=[0, 9, 10, 2, -1, 12]).open(), 10)
    with pytest.raises(DataError, match="6 images, 6 have none"):
        require_classes(Arrays(IMAGES).open(), 10)


def test_attributes_never_pass_for_columns_or_for_planted_truth():
    columns = {name: list(range(6)) for name in ("score", "planted", "original", "embedding", "age", "index")}
    table, changes = rename_attributes(Arrays(IMAGES, columns=columns).open())
    assert table is not None
    assert changes == {name: f"source_{name}" for name in columns if name != "age"}
    assert table.column_names == [changes.get(name, name) for name in columns]


def test_planted_truth_keeps_its_name_in_the_source_that_plants_it():
    table, changes = rename_attributes(Digits(size=8, digits=20).open())
    assert table is not None
    assert changes == {}
    assert table.column_names == ["label", "planted", "original"]
    assert rename_attributes(Arrays(IMAGES).open()) == (None, {})


def test_dark_images_of_sixteen_bits_are_noted():
    def notes(highest: int, bits=16) -> tuple[str, ...]:
        images = np.full((3, 8, 8), highest, np.uint16)
        return depth_notes(Arrays(images).open(), ToInput(8, 8, bits=bits))

    assert "no value above 4095: as images of 16 bits they are nearly black" in notes(4095)[0]
    assert notes(4095)[0].endswith("pretrain with --input.bits 12")
    assert notes(255)[0].endswith("--input.bits 8")
    assert notes(255, bits=12)[0].endswith("--input.bits 8")
    assert notes(4095, bits=12) == notes(40_000) == notes(0) == ()
    assert depth_notes(Arrays(IMAGES).open(), ToInput(8, 8)) == ()
