import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from influence_ssl_jax.data import Folder, ToInput, batches
from influence_ssl_jax.data.source import Skipped
from influence_ssl_jax.errors import DataError

FAIRFACE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "fairface"


def ids(source: Folder) -> list[str]:
    opened = source.open()
    return [opened.read(k).id for k in range(len(opened))]


def test_fairfaces_layout_works_as_it_is(photos):
    opened = Folder(str(photos / "train"), str(photos / "fairface_label_train.csv"), label_column="age").open()
    assert len(opened) == 12
    assert opened.notes() == ()
    assert opened.attributes().column_names == ["age", "gender", "service_test"]
    example = opened.read(9)
    assert (example.id, example.label) == ("10.jpg", 2)  # ages 0-9, 10-19, 20-29, 30-39; the tenth has 20-29
    assert opened.attributes().slice(9, 1).to_pylist() == [{"age": "20-29", "gender": "Female", "service_test": True}]
    with Image.open(photos / "train" / "10.jpg") as image:
        np.testing.assert_array_equal(example.image, np.asarray(image))


def test_the_folder_above_keeps_the_other_split_without_attributes(photos):
    opened = Folder(str(photos), str(photos / "fairface_label_train.csv")).open()
    assert len(opened) == 14
    assert opened.read(0).id == "train/1.jpg"
    assert opened.attributes()["gender"].to_pylist()[-3:] == ["Female", None, None]
    assert opened.notes()[0] == "images without a table row, kept without attributes: 2 (val/1.jpg, val/2.jpg)"


def test_the_order_is_natural_and_the_id_is_the_path(photos):
    expected = [f"train/{k}.jpg" for k in range(1, 13)] + ["val/1.jpg", "val/2.jpg"]
    assert ids(Folder(str(photos))) == expected
    opened = Folder(str(photos), label_column="folder").open()
    assert opened.attributes()["folder"].to_pylist() == ["train"] * 12 + ["val"] * 2
    assert [opened.read(k).label for k in (0, 13)] == [0, 1]


def test_damaged_files_are_named_and_the_rest_is_unchanged(photos):
    folder, key = photos / "train", jax.random.key(0)

    def loaded() -> tuple[dict[str, np.ndarray], dict[str, str]]:
        images, reasons = {}, {}
        for each in batches(Folder(str(folder)).open(), ToInput(4, 4), 5, key):
            images |= {n: row for n, row in zip(each.ids, np.asarray(each.batch.image), strict=True) if n}
            reasons |= {skipped.id: skipped.reason for skipped in each.skipped}
        return images, reasons

    before, nothing = loaded()
    assert nothing == {}
    content = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(content[: len(content) - 60])
    (folder / "5.jpg").write_bytes(b"")
    (folder / "7.jpg").write_text("no image")
    Image.fromarray(np.zeros((1, 300), np.uint8)).save(folder / "9.jpg")
    after, reasons = loaded()
    assert set(reasons) == {"3.jpg", "5.jpg", "7.jpg"}
    assert "truncated" in reasons["3.jpg"]
    assert set(after) == set(before) - set(reasons)
    for name in set(after) - {"9.jpg"}:
        np.testing.assert_array_equal(after[name], before[name])


def test_the_fingerprint_follows_names_sizes_and_attributes_but_not_the_place(photos, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(photos, moved)

    def fingerprint(root: pathlib.Path) -> str:
        return Folder(str(root / "train"), str(root / "fairface_label_train.csv")).open().fingerprint()

    seen = [fingerprint(photos)]
    assert fingerprint(moved) == seen[0]
    table = moved / "fairface_label_train.csv"
    table.write_text(table.read_text().replace("Male", "male", 1))
    seen.append(fingerprint(moved))
    (moved / "train" / "12.jpg").unlink()
    seen.append(fingerprint(moved))
    (moved / "train" / "1.jpg").rename(moved / "train" / "12.jpg")
    seen.append(fingerprint(moved))
    assert len(set(seen)) == 4


def test_links_out_of_the_folder_are_named_and_not_followed(photos, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.full((4, 4, 3), 77, np.uint8)).save(secret)
    (photos / "train" / "0.png").symlink_to(secret)
    (photos / "train" / "13.jpg").symlink_to(photos / "train" / "1.jpg")
    (photos / "train" / "14.png").symlink_to("/dev/zero")
    opened = Folder(str(photos / "train")).open()
    reasons = {each.id: each.reason for each in opened.read_many(range(len(opened))) if isinstance(each, Skipped)}
    assert set(reasons) == {"0.png", "14.png"}
    assert "a link that leads out of the folder" in reasons["0.png"]
    (photos / "train" / "14.png").unlink()
    followed = Folder(str(photos / "train"), links="follow").open()
    assert (followed.read(0).image == 77).all()


def test_other_files_are_passed_over_and_counted(photos):
    (photos / "train" / "notes.txt").write_text("x")
    (photos / "train" / ".hidden.jpg").write_bytes(b"")
    (photos / "train" / "UPPER.JPG").write_bytes((photos / "train" / "1.jpg").read_bytes())
    opened = Folder(str(photos / "train")).open()
    assert len(opened) == 13
    assert opened.notes() == ("files that are no images by their name, passed over: 1 (notes.txt)",)
    (photos / "train" / "table.csv").write_text("file,age\n1.jpg,3\n")
    tabled = Folder(str(photos / "train"), table=str(photos / "train" / "table.csv")).open()
    assert tabled.notes()[-1] == opened.notes()[0]  # the table itself is no stranger


def test_folders_that_cannot_be_used_are_refused(tmp_path, photos):
    with pytest.raises(DataError, match="There is no folder"):
        Folder(str(tmp_path / "absent")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no images .*found 0 other files"):
        Folder(str(tmp_path / "empty")).open()
    with pytest.raises(DataError, match="no attribute 'age' to use as the class; there are \\['folder'\\]"):
        Folder(str(photos), label_column="age").open()


@pytest.mark.skipif(not FAIRFACE.is_dir(), reason=f"the FairFace sample is not at {FAIRFACE}")
def test_the_real_fairface_sample():
    opened = Folder(str(FAIRFACE / "val"), str(FAIRFACE / "fairface_label_val.csv"), label_column="race").open()
    assert len(opened) == 1000
    assert opened.notes() == ()
    assert opened.attributes().slice(0, 1).to_pylist() == [
        {"age": "3-9", "gender": "Male", "race": "East Asian", "service_test": False}
    ]
    assert opened.read(999).image.shape == (64, 64, 3)
    assert {opened.read(k).label for k in range(100)} <= set(range(7))
