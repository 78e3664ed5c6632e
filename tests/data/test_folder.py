import errno
import os
import pathlib
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from influence_ssl_jax.data import Folder, ToInput, batches, listing
from influence_ssl_jax.data.examples import Skipped
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
    assert "a link out of the folder" in reasons["0.png"]
    (photos / "train" / "14.png").unlink()
    followed = Folder(str(photos / "train"), links="follow").open()
    assert (followed.read(0).image == 77).all()


def test_entries_that_are_no_files_are_named_and_never_waited_for(photos):
    folder = photos / "train"
    (folder / "20.png").symlink_to("nowhere.png")
    (folder / "21.png").symlink_to("21.png")
    os.mkfifo(folder / "22.png")
    (folder / "23.png").symlink_to("22.png")
    (folder / "24.jpg").mkdir()
    (folder / "25.png").symlink_to("24.jpg")
    raw = os.fsencode(folder) + b"/26\xff\x1b[31m.jpg"
    shutil.copy(folder / "1.jpg", raw)
    for links in ("skip", "follow"):
        opened = Folder(str(folder), links=links).open()
        assert len(opened) == 12 + 4 + 1
        opened.fingerprint()
        read = list(opened.read_many(range(len(opened))))
        reasons = {each.id: each.reason for each in read if isinstance(each, Skipped)}
        assert reasons == {
            "20.png": "a link to nothing",
            "21.png": "a link to itself",
            "22.png": "not a regular file",
            "23.png": "not a regular file",
        }
        assert read[-1].id == "26\\xff\\x1b[31m.jpg"
    assert (
        "links to folders, not followed (links='follow' follows them): 1 (25.png)" in Folder(str(folder)).open().notes()
    )


def test_a_file_that_vanishes_after_the_listing_is_named(photos):
    opened = Folder(str(photos / "train")).open()
    (photos / "train" / "3.jpg").unlink()
    assert opened.fingerprint() == opened.fingerprint()
    (missed,) = [each for each in opened.read_many(range(12)) if isinstance(each, Skipped)]
    assert (missed.id, missed.reason) == ("3.jpg", "the file is gone")


def test_linked_folders_are_followed_where_the_user_says_so_and_once(photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(photos / "train" / "1.jpg", elsewhere / "far.jpg")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "train" / "up").symlink_to(photos)
    skipped, followed = (Folder(str(photos), links=links).open() for links in ("skip", "follow"))
    assert "not followed (links='follow' follows them): 2 (linked, train/up)" in " ".join(skipped.notes())
    assert [name for name in followed.ids() if "far" in name] == ["linked/far.jpg"]
    assert "links back to a folder above, not followed: 1 (train/up)" in " ".join(followed.notes())
    assert len(followed) == len(skipped) + 1
    assert followed.fingerprint() != skipped.fingerprint()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG])
def test_folders_that_cannot_be_opened_are_named(photos, monkeypatch, number):
    opened = os.scandir

    def closed(path):
        if str(path).endswith("val"):
            raise OSError(number, os.strerror(number))
        return opened(path)

    monkeypatch.setattr(os, "scandir", closed)
    source = Folder(str(photos)).open()
    assert len(source) == 12
    said = f"folders that cannot be opened, their images are not used: 1 (val ({os.strerror(number)}))"
    assert said in source.notes()


def test_classes_and_links_are_part_of_what_the_folder_is(photos):
    def fingerprint(**changes) -> str:
        table = str(photos / "fairface_label_train.csv")
        return Folder(str(photos / "train"), table, **changes).open().fingerprint()

    prints = {
        fingerprint(),
        fingerprint(label_column="age"),
        fingerprint(label_column="gender"),
        fingerprint(links="follow"),
    }
    assert len(prints) == 4


def test_a_time_stamp_alone_changes_nothing_and_the_fingerprint_says_what_it_does_not_see(photos):
    opened = Folder(str(photos / "train"))
    before = opened.open().fingerprint()
    os.utime(photos / "train" / "1.jpg", (1, 1))
    assert opened.open().fingerprint() == before
    content = (photos / "train" / "1.jpg").read_bytes()
    (photos / "train" / "1.jpg").write_bytes(content[:-3] + b"xyz")
    assert opened.open().fingerprint() == before
    said = " ".join(type(opened.open()).fingerprint.__doc__.split())
    assert "if two files of the same size are exchanged, the hash stays" in said


def test_images_of_other_sizes_are_the_same_members(photos):
    """A run that knows the digest of every image names the one that has changed."""
    opened = Folder(str(photos / "train"), str(photos / "fairface_label_train.csv"))
    before = opened.open()
    with (photos / "train" / "1.jpg").open("ab") as file:
        file.write(b"more")
    after = opened.open()
    assert after.fingerprint() != before.fingerprint()
    assert after.members() == before.members()
    (photos / "train" / "1.jpg").rename(photos / "train" / "one.jpg")
    assert opened.open().members() != before.members()


def test_a_large_folder_is_listed_in_little_memory(tmp_path):
    """Sorted in order of numbers, at less than 400 bytes a name; Python's own sort keys took 900."""
    count = 1_000
    for k in range(count):
        os.close(os.open(tmp_path / f"img{k % 977}_{k}.jpg", os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    listed = listing.list_images(tmp_path)
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert len(listed.images) == count
    assert listed.images[:3] == ["img0_0.jpg", "img0_977.jpg", "img1_1.jpg"]
    assert listed.images[-1] == "img976_976.jpg"
    assert (listed.sizes == 0).all()
    assert peak < 400


def test_other_files_are_passed_over_and_counted(photos):
    (photos / "train" / "notes.txt").write_text("x")
    (photos / "train" / ".hidden.jpg").write_bytes(b"")
    (photos / "train" / "UPPER.JPG").write_bytes((photos / "train" / "1.jpg").read_bytes())
    opened = Folder(str(photos / "train")).open()
    assert len(opened) == 13
    assert opened.notes() == ("files without the suffix of an image, left out: 1 (notes.txt)",)
    (photos / "train" / "table.csv").write_text("file,age\n1.jpg,3\n")
    tabled = Folder(str(photos / "train"), table=str(photos / "train" / "table.csv")).open()
    assert tabled.notes()[-1] == opened.notes()[0]  # the table itself is no stranger


def test_folders_that_cannot_be_used_are_refused(tmp_path, photos):
    with pytest.raises(DataError, match="There is no folder"):
        Folder(str(tmp_path / "absent")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"contains no .* files, only 0 other files"):
        Folder(str(tmp_path / "empty")).open()
    with pytest.raises(DataError, match="no attribute 'age' to use as the class; choose one of \\['folder'\\]"):
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
