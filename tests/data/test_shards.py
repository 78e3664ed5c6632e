import os
import pathlib
import tarfile

import numpy as np
import pytest

from influence_ssl_jax.data import Shards, shards
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import DataError
from tests.data.kept import add, encoded, pixels, write_shards


@pytest.fixture(autouse=True)
def kept_in(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "influence-ssl" / "shards"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    write_shards(tmp_path / "tars")
    return tmp_path / "tars"


def test_samples_are_examples_in_the_order_of_archives_and_keys(folder):
    opened = Shards(str(folder)).open()
    assert len(opened) == 10
    for index in (9, 0, 4, 5):
        example = opened.read(index)
        np.testing.assert_array_equal(example.image, pixels(index))
        assert (example.id, example.label) == (f"train-{index // 5:03d}.tar/{index:04d}", index % 3)
    assert opened.attributes().to_pydict() == {
        "age": list(range(10)),
        "indoors": [k % 2 == 0 for k in range(10)],
        "cls": [k % 3 for k in range(10)],
    }
    assert opened.labels().tolist() == [k % 3 for k in range(10)]
    assert opened.notes() == ("entries of json files that contain lists or records, left out: 1 (tags)",)
    assert Shards(str(folder), label="indoors").open().labels().tolist() == [1, 0] * 5


def test_the_index_is_made_once_and_belongs_to_the_file(folder, kept_in, monkeypatch):
    first = Shards(str(folder)).open()
    assert len(list(kept_in.glob("*.index"))) == 2
    made = []
    indexed = shards._scan
    monkeypatch.setattr(shards, "_scan", lambda archive, image: made.append(archive.name) or indexed(archive, image))
    again = Shards(str(folder)).open()
    assert made == []
    assert again.fingerprint() == first.fingerprint()
    assert again.notes() == first.notes()
    with tarfile.open(folder / "train-001.tar", "a") as archive:
        add(archive, "0099.png", encoded(99))
    assert len(Shards(str(folder)).open()) == 11
    assert made == ["train-001.tar"]

    def flipped(whole):
        return whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]

    for damage in (flipped, lambda _: b"damaged"):
        made.clear()
        for file in kept_in.glob("*.index"):
            file.write_bytes(damage(file.read_bytes()))
        assert len(Shards(str(folder)).open()) == 11
        assert len(made) == 2


def test_an_archive_that_takes_the_place_of_another_is_read_anew_whatever_its_time(tmp_path):
    for name, keys in (("a", "12"), ("b", "21")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for key in keys:
                add(archive, f"{key}.png", encoded(int(key)))
    assert list(Shards(str(tmp_path / "a.tar")).open().ids()) == ["a.tar/1", "a.tar/2"]
    before = (tmp_path / "a.tar").stat()
    (tmp_path / "b.tar").replace(tmp_path / "a.tar")
    os.utime(tmp_path / "a.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tmp_path / "a.tar").stat().st_size == before.st_size
    assert list(Shards(str(tmp_path / "a.tar")).open().ids()) == ["a.tar/2", "a.tar/1"]


def test_images_of_other_sizes_are_the_same_members(folder, tmp_path):
    before = Shards(str(folder)).open()
    contents = [before.content(k) for k in range(10)]
    with tarfile.open(tmp_path / "again.tar", "w") as archive, tarfile.open(folder / "train-001.tar") as held:
        for member in held:
            content = held.extractfile(member).read()
            add(archive, member.name, encoded(99) + b"more" if member.name == "0007.png" else content)
    (tmp_path / "again.tar").replace(folder / "train-001.tar")
    after = Shards(str(folder)).open()
    assert after.fingerprint() != before.fingerprint()
    assert after.members() == before.members()
    assert [k for k in range(10) if after.content(k) != contents[k]] == [7]


def test_half_a_character_in_json_becomes_its_escape(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "1.png", encoded(1))
        add(archive, "1.json", b'{"\\ud800 name": "a\\udfff", "age": 3}')
    opened = Shards(str(tmp_path / "t.tar")).open()
    assert opened.attributes().to_pydict() == {"\\ud800 name": ["a\\udfff"], "age": [3]}


def test_a_range_names_archives_and_a_missing_one_is_refused(folder):
    assert len(Shards(f"{folder}/train-{{000..001}}.tar").open()) == 10
    with pytest.raises(DataError, match=r"train-002\.tar"):
        Shards(f"{folder}/train-{{000..002}}.tar").open()
    with pytest.raises(DataError, match="names 100,000,000,000 files, more than 1,000,000"):
        Shards(f"{folder}/train-{{0..99999999999}}.tar").open()


def test_archives_elsewhere_are_read_through_fsspec(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/tars/{file.name}", file.read_bytes())
    try:
        opened = Shards("memory://tars").open()
        assert opened.fingerprint() == Shards(str(folder)).open().fingerprint()
        np.testing.assert_array_equal(opened.read(7).image, pixels(7))
    finally:
        memory.rm("/tars", recursive=True)


def test_a_damaged_image_is_named_by_archive_and_key(tmp_path):
    write_shards(tmp_path / "tars", broken=6)
    opened = Shards(str(tmp_path / "tars")).open()
    (missed,) = [each for each in opened.read_many(range(10)) if isinstance(each, Skipped)]
    assert (missed.index, missed.id) == (6, "train-001.tar/0006")


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_what_follows_a_damaged_place_is_said_to_be_lost(folder, damage):
    file = folder / "train-000.tar"
    content = bytearray(file.read_bytes())
    place = content.find(b"0003.png")
    if damage == "cut":
        file.write_bytes(content[: place + 512 + 40])
    else:
        content[place + 100 : place + 200] = b"\xff" * 100
        file.write_bytes(content)
    opened = Shards(str(folder)).open()
    (note,) = [note for note in opened.notes() if "train-000" in note]
    assert "the archive is damaged, the files after the damage are lost: 1 (after 000" in note
    read = list(opened.read_many(range(len(opened))))
    whole = [each.id for each in read if not isinstance(each, Skipped)]
    assert whole == [f"train-000.tar/{k:04d}" for k in range(3)] + [f"train-001.tar/{k:04d}" for k in range(5, 10)]
    if damage == "cut":
        assert next(each.reason for each in read if isinstance(each, Skipped)).startswith(
            "the archive is truncated: 40 of"
        )


def test_strange_entries_are_counted_and_nothing_is_followed(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "a/1.jpg", encoded(1))
        add(archive, "a/1.json", b"{broken")
        link = tarfile.TarInfo("a/2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "a/3.cls", b"7")
        add(archive, "a/\x1b[31m.png", encoded(4))
        add(archive, "README", b"x")
    opened = Shards(str(tmp_path / "t.tar")).open()
    assert list(opened.ids()) == ["t.tar/a/1", "t.tar/a/3", "t.tar/a/\\x1b[31m"]
    assert opened.notes() == (
        "t.tar: entries that belong to no sample, left out: 2 (a/2.png, README)",
        "samples whose json is damaged, without attributes: 1 (t.tar/a/1)",
    )
    (missed,) = [each for each in opened.read_many(range(3)) if isinstance(each, Skipped)]
    assert (missed.id, missed.reason) == ("t.tar/a/3", "the sample has no image")


def test_several_images_of_a_sample_are_asked_about(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for ending, number in (("input.png", 1), ("depth.png", 2)):
            add(archive, f"7.{ending}", encoded(number))
    with pytest.raises(DataError, match=r"1 samples have several images, the first is t\.tar/7"):
        Shards(str(tmp_path / "t.tar")).open()
    np.testing.assert_array_equal(Shards(str(tmp_path / "t.tar"), image="depth.png").open().read(0).image, pixels(2))


def test_what_is_no_archive_is_refused(tmp_path, folder):
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"x\.tar' contains no samples: it is compressed, damaged"):
        Shards(str(tmp_path / "x.tar")).open()
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        add(archive, "1.txt", b"x")
    with pytest.raises(DataError, match="contains an image"):
        Shards(str(tmp_path / "y.tar")).open()
    with pytest.raises(DataError, match="no attribute 'colour' to use as the class; choose one of"):
        Shards(str(folder), label="colour").open()
