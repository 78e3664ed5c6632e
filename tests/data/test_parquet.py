import os
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from influence_ssl_jax.data import Parquet, UnreadableExample
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import DataError
from tests.data.kept import NAMES, encoded, pixels, write_parquet


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    write_parquet(tmp_path / "rows")
    return tmp_path / "rows"


def test_rows_are_examples_in_the_order_of_files_and_rows(folder):
    opened = Parquet(str(folder)).open()
    assert len(opened) == 10
    for index in (9, 0, 4, 5):
        example = opened.read(index)
        np.testing.assert_array_equal(example.image, pixels(index))
        assert (example.id, example.label) == (f"{index}.png", index % 3 if index else None)
    assert [opened.read(k).id for k in range(10)] == list(opened.ids())
    assert opened.labels().tolist() == [-1, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert opened.attributes().to_pydict() == {
        "label": [None, *(NAMES[k % 3] for k in range(1, 10))],
        "age": [float(k) for k in range(10)],
    }
    assert opened.notes() == ("columns that cannot be attributes, left out: 1 (boxes)",)


def test_a_pattern_an_address_and_one_file_name_the_same_rows(folder):
    whole = Parquet(str(folder)).open()
    for path in (f"{folder}/train-*.parquet", f"file://{folder}", f"{folder}/train-{{00000..00001}}.parquet"):
        assert Parquet(path).open().fingerprint() == whole.fingerprint()
    assert len(Parquet(str(folder / "train-00001.parquet")).open()) == 5


def test_files_elsewhere_are_read_through_fsspec(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/elsewhere/{file.name}", file.read_bytes())
    try:
        opened = Parquet("memory://elsewhere").open()
        assert opened.fingerprint() == Parquet(str(folder)).open().fingerprint()
        np.testing.assert_array_equal(opened.read(7).image, pixels(7))
    finally:
        memory.rm("/elsewhere", recursive=True)


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_of_both_kinds_hold_plain_bytes(tmp_path, stream):
    table = pa.table({"picture": [encoded(k) for k in range(4)], "name": list("abcd"), "kind": ["x", None, "y", ""]})
    kind = ipc.new_stream if stream else ipc.new_file
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    opened = Parquet(str(tmp_path / "t.arrow"), id="name", label="kind").open()
    assert list(opened.ids()) == list("abcd")
    assert opened.labels().tolist() == [0, -1, 1, -1]
    assert opened.attributes().column_names == ["kind"]
    np.testing.assert_array_equal(opened.read(3).image, pixels(3))
    assert Parquet(str(tmp_path / "t.arrow")).open().read(3).id == "t.arrow/3"
    if not stream:  # the content says what a file is
        (tmp_path / "t.arrow").rename(tmp_path / "t.feather")
        assert Parquet(str(tmp_path / "t.feather")).open().read(3).id == "t.feather/3"


def test_views_of_bytes_are_images(tmp_path):
    parquet.write_table(pa.table({"image": pa.array([encoded(0)], pa.binary_view())}), tmp_path / "t.parquet")
    np.testing.assert_array_equal(Parquet(str(tmp_path / "t.parquet")).open().read(0).image, pixels(0))


def test_few_row_groups_are_kept_and_each_is_read_once_in_order(folder, monkeypatch):
    opened = Parquet(str(folder), kept_mib=0).open()
    reads = []
    file = type(opened._files[0])
    group = file.group
    monkeypatch.setattr(
        file, "group", lambda self, number, columns: reads.append(number) or group(self, number, columns)
    )
    for index in range(10):
        opened.read(index)
    assert reads == [0, 1, 0, 1]
    assert len(opened._kept._groups) == 1


def test_damaged_rows_and_groups_are_named_and_the_rest_is_read(tmp_path):
    write_parquet(tmp_path / "rows", broken=3)
    file = tmp_path / "rows" / "train-00001.parquet"
    content = bytearray(file.read_bytes())
    inside = content.find(b"\x89PNG")
    content[4:inside] = b"\xff" * (inside - 4)  # the header of the first page of images
    file.write_bytes(content)
    opened = Parquet(str(tmp_path / "rows")).open()
    read = list(opened.read_many(range(10)))
    reasons = {each.index: each for each in read if isinstance(each, Skipped)}
    assert set(reasons) == {3, 5, 6, 7}
    assert reasons[3].id == "3.png"
    assert "row group 0 of train-00001.parquet is damaged" in reasons[6].reason
    np.testing.assert_array_equal(read[8].image, pixels(8))


def test_rows_without_an_image_say_so(tmp_path):
    rows = [{"bytes": None, "path": "/photos/1.jpg"}, None, {"bytes": encoded(2), "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "t.parquet")
    opened = Parquet(str(tmp_path / "t.parquet")).open()
    assert list(opened.ids()) == ["/photos/1.jpg", "t.parquet/1", "t.parquet/2"]
    with pytest.raises(UnreadableExample, match="the path of an image and not the image"):
        opened.read(0)
    with pytest.raises(UnreadableExample, match="the row has no image"):
        opened.read(1)


def test_the_fingerprint_follows_rows_attributes_and_classes_but_not_the_place(folder, tmp_path):
    first = Parquet(str(folder)).open().fingerprint()
    write_parquet(tmp_path / "again")
    assert Parquet(str(tmp_path / "again")).open().fingerprint() == first
    prints = {first, Parquet(str(folder), label="age").open().fingerprint()}
    write_parquet(tmp_path / "fewer", count=9)
    prints.add(Parquet(str(tmp_path / "fewer")).open().fingerprint())
    assert len(prints) == 3


def test_images_of_other_sizes_are_the_same_members(folder):
    before = Parquet(str(folder)).open()
    contents = [before.content(k) for k in range(10)]
    file = folder / "train-00001.parquet"
    table = parquet.read_table(file)
    images = table["image"].to_pylist()
    images[2]["bytes"] += b"more"
    column = pa.array(images, table.schema.field("image").type)
    parquet.write_table(table.set_column(table.column_names.index("image"), table.schema.field("image"), column), file)
    after = Parquet(str(folder)).open()
    assert after.fingerprint() != before.fingerprint()
    assert after.members() == before.members()
    assert [k for k in range(10) if after.content(k) != contents[k]] == [7]


def test_a_file_that_is_cut_short_under_a_run_is_damage_and_no_crash(folder):
    opened = Parquet(str(folder), kept_mib=0).open()
    file = folder / "train-00001.parquet"
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(UnreadableExample, match=r"row group 1 of train-00001.parquet is damaged"):
        opened.read(9)


def test_a_row_group_with_fewer_rows_than_the_footer_says_is_damaged(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"image": [encoded(k) for k in range(6)]})
    parquet.write_table(table, path, row_group_size=4, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # in the header of the first page
    path.write_bytes(content)
    opened = Parquet(str(path)).open()
    with pytest.raises(UnreadableExample, match=r"row group 0 of t.parquet is damaged: 0 rows in place of 4"):
        opened.read(1)
    np.testing.assert_array_equal(opened.read(4).image, pixels(4))


def write_arrow(path: pathlib.Path, stream: bool, rows: int = 6) -> None:
    """Two batches of rows with an attribute that has a dictionary."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([{"bytes": encoded(k), "path": f"{k}.png"} for k in range(rows)], kind),
            "name": [f"name {k}" for k in range(rows)],
            "kind": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
        }
    )
    with pa.OSFile(str(path), "wb") as file, (ipc.new_stream if stream else ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def use_all(path: pathlib.Path) -> list[str]:
    """Read everything of a data set; return the reasons of skipped rows."""
    opened = Parquet(str(path)).open()
    opened.fingerprint()
    str(opened.attributes())
    return [each.reason for each in opened.read_many(range(len(opened))) if isinstance(each, Skipped)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bit_flipped_anywhere_in_an_arrow_file_is_refused_or_a_named_row(tmp_path, stream):
    path = tmp_path / "t.arrow"
    write_arrow(path, stream)
    whole, rng = path.read_bytes(), np.random.default_rng(3)
    outcomes = set()
    for place in rng.choice(len(whole), 150, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            outcomes.add("skipped" if use_all(path) else "read")
        except DataError as error:
            outcomes.add("refused" if "t.arrow' is damaged" in str(error) else str(error))
    assert outcomes == {"skipped", "read", "refused"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_that_is_cut_short_under_a_run_is_damage_and_no_crash(tmp_path, stream):
    path = tmp_path / "t.arrow"
    write_arrow(path, stream)
    opened = Parquet(str(path)).open()
    os.truncate(path, 200)
    with pytest.raises(UnreadableExample, match=r"row group 1 of t.arrow is damaged"):
        opened.read(5)


def test_offsets_and_texts_that_lie_are_found_before_they_are_used(tmp_path):
    path = tmp_path / "t.arrow"
    write_arrow(path, stream=True)
    whole = path.read_bytes()
    offsets = np.arange(5, dtype=np.int32) * 5  # those of the paths 0.png … 3.png
    assert whole.count(offsets.tobytes()) == 1
    path.write_bytes(whole.replace(offsets.tobytes(), (offsets + np.int32([0, 0, 2**30, 0, 0])).tobytes()))
    with pytest.raises(DataError, match=r"t.arrow' is damaged \(the images' paths\): "):
        Parquet(str(path)).open()
    path.write_bytes(whole.replace(b"name 1", b"name \xff"))
    with pytest.raises(DataError, match=r"t.arrow' is damaged \(name, kind\): .*UTF8"):
        Parquet(str(path)).open()


@pytest.mark.parametrize("compression", ["lz4", None])
def test_a_length_that_no_memory_holds_is_damage_and_no_lack_of_memory(tmp_path, compression):
    path = tmp_path / "t.arrow"
    options = ipc.IpcWriteOptions(compression=compression)
    table = pa.table({"image": [bytes(1000)] * 4})
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)
    opened, whole = Parquet(str(path)).open(), path.read_bytes()
    assert use_all(path)[0].startswith("not an image")
    length = (4000).to_bytes(8, "little")
    path.write_bytes(whole.replace(length, (4000 | 1 << 58).to_bytes(8, "little")))
    with pytest.raises(UnreadableExample, match=r"row group 0 of t.arrow is damaged"):
        opened.read(0)


def test_what_cannot_be_used_is_refused_by_name(tmp_path, folder):
    with pytest.raises(DataError, match="no files"):
        Parquet(str(tmp_path / "none-*.parquet")).open()
    with pytest.raises(DataError, match="cannot be listed"):
        Parquet(str(tmp_path / "none.parquet")).open()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet' is damaged or no parquet file"):
        Parquet(str(tmp_path / "broken.parquet")).open()
    with pytest.raises(DataError, match="no column 'age' of encoded images; the columns are image: struct"):
        Parquet(str(folder), image="age").open()
    with pytest.raises(DataError, match="label column 'boxes' contains values of type list<"):
        Parquet(str(folder), label="boxes").open()
    with pytest.raises(DataError, match="no column 'name' of ids"):
        Parquet(str(folder), id="name").open()
    parquet.write_table(pa.table({"left": [b""], "right": [b""]}), tmp_path / "two.parquet")
    with pytest.raises(DataError, match=r"one image in each row.*has several: left, right"):
        Parquet(str(tmp_path / "two.parquet")).open()
    parquet.write_table(pa.table({"image": [b"", b""], "age": ["a", "b"]}), folder / "train-00002.parquet")
    with pytest.raises(DataError, match=r"train-00002\.parquet has other columns than train-00000\.parquet"):
        Parquet(str(folder)).open()
