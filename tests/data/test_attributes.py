import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from influence_ssl_jax.data.attributes import match, number_classes, read_table, rename_taken, storable
from influence_ssl_jax.errors import DataError

FILES = ["1.jpg", "2.jpg", "sub/3.jpg"]


def table(*names: str) -> pa.Table:
    return pa.table({"file": list(names), "row": list(range(len(names)))})


def test_rows_follow_the_files():
    matched = match(table("sub/3.jpg", "1.jpg", "2.jpg"), "file", FILES, ".")
    assert matched.columns.to_pydict() == {"row": [1, 2, 0]}
    assert matched.notes == ()


def test_names_may_be_relative_to_the_tables_own_folder():
    matched = match(table("train/2.jpg", "train/./1.jpg", "train\\sub\\3.jpg"), "file", FILES, "train")
    assert matched.columns.to_pydict() == {"row": [1, 0, 2]}
    assert match(table("2.jpg", "1.jpg"), "file", FILES, "train").columns.to_pydict() == {"row": [1, 0, None]}


def test_what_does_not_match_is_counted_and_nothing_is_lost():
    matched = match(table("1.jpg", "8.jpg", "9.jpg", "1.jpg"), "file", FILES, ".")
    assert matched.columns.to_pydict() == {"row": [0, None, None]}
    assert matched.notes == (
        "table rows that name no image, left out: 2 (8.jpg, 9.jpg)",
        "images without a table row, kept without attributes: 2 (2.jpg, sub/3.jpg)",
        "table rows that name a file again, the first row counts: 1 (1.jpg)",
    )


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "C:\\x.jpg", "..\\x.jpg"])
def test_names_outside_the_folder_are_refused(name):
    with pytest.raises(DataError, match=r"Row 1 of the table names .* outside the folder"):
        match(table("1.jpg", name), "file", FILES, ".")


def test_a_missing_column_names_those_that_exist():
    with pytest.raises(DataError, match="no column 'path' of file names; it has file, row"):
        match(table("1.jpg"), "path", FILES, ".")


def test_formats(tmp_path):
    parquet.write_table(table(*FILES), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("file,row\n" + "".join(f"{name},{k}\n" for k, name in enumerate(FILES)))
    (tmp_path / "t.tsv").write_text("file\trow\n" + "".join(f"{name}\t{k}\n" for k, name in enumerate(FILES)))
    for name in ("t.parquet", "t.csv", "t.tsv"):
        assert read_table(tmp_path / name).to_pydict() == table(*FILES).to_pydict()


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no table"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    (tmp_path / "ragged.csv").write_text("file,row\n1.jpg,1,2,3\n")
    (tmp_path / "empty.csv").write_text("")
    for name in ("broken.parquet", "ragged.csv", "empty.csv"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read_table(tmp_path / name)


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("file,age,age\n1.jpg,1,2\n")
    (tmp_path / "none.csv").write_text(",file,age\n0,1.jpg,2\n")
    parquet.write_table(pa.Table.from_arrays([pa.array([1])] * 3, ["file", "x", "x"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"2 columns named 'age' \(columns 2, 3\)"):
        read_table(tmp_path / "twice.csv")
    with pytest.raises(DataError, match=r"2 columns named 'x' \(columns 2, 3\)"):
        read_table(tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="no name for column 1 of 3"):
        read_table(tmp_path / "none.csv")


def test_another_encoding_is_refused_with_its_line_or_stated(tmp_path):
    (tmp_path / "t.csv").write_bytes("file,who\n1.jpg,Ann\n2.jpg,René\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"Line 3 of the table .*t\.csv is not utf-8 \('.*2\.jpg,Ren.*'\)"):
        read_table(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv", encoding="latin-1")["who"].to_pylist() == ["Ann", "René"]
    (tmp_path / "w.csv").write_text("file,who\n1.jpg,René\n", encoding="utf-16")
    assert read_table(tmp_path / "w.csv", encoding="utf-16").to_pydict() == {"file": ["1.jpg"], "who": ["René"]}
    (tmp_path / "b.csv").write_text("file,who\n1.jpg,René\n", encoding="utf-8-sig")
    assert read_table(tmp_path / "b.csv").column_names == ["file", "who"]
    with pytest.raises(DataError, match="no encoding 'utf-9'"):
        read_table(tmp_path / "t.csv", encoding="utf-9")


def test_newlines_between_quotes_are_read_whatever_the_size(tmp_path):
    note = "two\nlines, " * 10
    rows = 25_000  # 3 MB: more than one block
    (tmp_path / "t.csv").write_text("file,note\n" + "".join(f'{k}.jpg,"{note}{k}"\n' for k in range(rows)))
    assert (tmp_path / "t.csv").stat().st_size > 2**21
    assert read_table(tmp_path / "t.csv")["note"].to_pylist() == [f"{note}{k}" for k in range(rows)]


def test_names_are_text_whatever_they_look_like(tmp_path):
    (tmp_path / "t.csv").write_text("file,row\n007,1\n010,2\n")
    given = read_table(tmp_path / "t.csv", ("file",))
    assert match(given, "file", ["007", "010"], ".").columns.to_pydict() == {"row": [1, 2]}
    as_bytes = pa.table({"file": [b"1.jpg", b"2.jpg"], "row": [1, 2]})
    assert match(as_bytes, "file", ["2.jpg", "1.jpg"], ".").columns.to_pydict() == {"row": [2, 1]}
    as_codes = pa.table({"file": pa.array(["1.jpg", "2.jpg"]).dictionary_encode(), "row": [1, 2]})
    assert match(as_codes, "file", ["2.jpg", "1.jpg"], ".").columns.to_pydict() == {"row": [2, 1]}
    with pytest.raises(DataError, match=r"column 'file' is not text in row 1: .* Write it as UTF-8"):
        match(pa.table({"file": [b"1.jpg", b"\xff"]}), "file", ["1.jpg"], ".")
    with pytest.raises(DataError, match=r"column 'file' contains values of type list<"):
        match(pa.table({"file": [["1.jpg"]]}), "file", ["1.jpg"], ".")


def test_letters_with_accents_are_alike_however_they_are_composed():
    one, two = "caf\u00e9.jpg", "cafe\u0301.jpg"
    assert match(table(one, "1.jpg"), "file", [two, "1.jpg"], ".").columns.to_pydict() == {"row": [0, 1]}
    assert match(table(two), "file", [one], ".").notes == ()


def test_rows_without_a_name_are_counted():
    matched = match(pa.table({"file": ["1.jpg", None], "row": [1, 2]}), "file", ["1.jpg"], ".")
    assert matched.notes == ("table rows without a file name, left out: 1 (row 1)",)


def test_no_match_at_all_is_refused_with_both_forms():
    with pytest.raises(DataError, match=r"No row .* has names such as '1', the images have names such as '1\.jpg'"):
        match(table("1", "2"), "file", FILES, ".")


def test_classes_number_values_of_every_type_in_sorted_order():
    def numbered(values: list, kind: pa.DataType | None = None) -> list[int]:
        return number_classes(pa.chunked_array([pa.array(values, kind)]), "x").labels.tolist()

    assert numbered(["b", "a", None, "b", ""]) == [1, 0, -1, 1, -1]
    assert numbered(["only", "only"], pa.large_string()) == [0, 0]
    assert numbered([0, 1, 2, 1]) == [0, 1, 2, 1]
    assert numbered([2**40, None, 3]) == [1, -1, 0]
    assert numbered([-1, 1, -1]) == [0, 1, 0]
    assert numbered([100_000_000, 5]) == [1, 0]
    assert numbered([1.5, float("nan"), 0.5, None]) == [1, -1, 0, -1]
    assert numbered([True, None, False]) == [1, -1, 0]
    assert numbered([b"x", b"", None]) == [0, -1, -1]
    coded = pa.chunked_array([pa.array(["b", "a", None]).dictionary_encode()])
    assert number_classes(coded, "x").labels.tolist() == [1, 0, -1]
    assert number_classes(pa.chunked_array([["b", "a", None]]), "x").values == ("a", "b")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pa.array([Decimal("2.5"), None, Decimal("1.5")]), [1, -1, 0]),
        (pa.array([datetime.date(2021, 1, 1), datetime.date(2020, 1, 1)]), [1, 0]),
        (pa.array(["b", "a", "", None], pa.string_view()), [1, 0, -1, -1]),
        (pa.array([b"b", b"a"], pa.binary_view()), [1, 0]),
        (pa.array(np.array([2, 1, np.nan], np.float16)), [1, 0, -1]),
        (pa.array([-0.0, 1.0, 0.0]), [0, 1, 0]),
        (pa.array([b"b" * 16, b"a" * 16], pa.uuid()), [1, 0]),
        (pa.RunEndEncodedArray.from_arrays([2, 3], ["b", "a"]), [1, 1, 0]),
        (pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None])), [0, -1]),
    ],
    ids=str,
)
def test_classes_of_every_type_that_a_file_can_hold(values, labels):
    assert number_classes(pa.chunked_array([values]), "x").labels.tolist() == labels


def test_attributes_become_what_a_table_can_hold_or_are_refused_by_name():
    runs = pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"])
    names = pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None]))
    given = pa.table({"view": pa.array(["a", "b"], pa.string_view()), "runs": runs, "names": names, "lists": [[1], []]})
    table = storable(given)
    assert table.to_pydict() == given.to_pydict()
    assert table.schema.types == [pa.string(), pa.string(), pa.string(), pa.list_(pa.int64())]
    for kind, values in (
        ("month_day_nano_interval", pa.array([pa.MonthDayNano([1, 2, 3])])),
        ("struct<>", pa.array([{}], pa.struct([]))),
    ):
        with pytest.raises(
            DataError, match=f"^The attribute 'odd' is of the type {kind}, which a table of scores cannot"
        ):
            storable(pa.table({"good": [1], "odd": values}))


def test_what_gives_no_class_is_refused_by_name():
    with pytest.raises(DataError, match=r"^x holds month_day_nano_interval, which has no order"):
        number_classes(pa.chunked_array([pa.array([pa.MonthDayNano([1, 2, 3])])]), "x")
    for values in ([[1, 0], [0, 1]], [{"a": 1}, None]):
        with pytest.raises(DataError, match=r"^The label column 'y' contains values of type (list|struct)<"):
            number_classes(pa.chunked_array([pa.array(values)]), "The label column 'y'")
    for values in ([None, None], ["", None], [float("nan")]):
        with pytest.raises(DataError, match=r"^x has no value"):
            number_classes(pa.chunked_array([pa.array(values)]), "x")


def test_times_finer_than_microseconds_are_text_and_durations_numbers(tmp_path):
    kinds = {"t": pa.time64("ns"), "d": pa.duration("ns"), "s": pa.timestamp("ns", "UTC")}
    for values, unit in (([1_000, None], "us"), ([1_001, None], "ns")):
        parquet.write_table(
            pa.table({name: pa.array(values, kind) for name, kind in kinds.items()}), tmp_path / "t.parquet"
        )
        table = read_table(tmp_path / "t.parquet")
        types = [str(table[name].type) for name in kinds]
        if unit == "us":
            assert types == ["time64[us]", "duration[us]", "timestamp[us, tz=UTC]"]
        else:
            assert types == ["string", "int64", "string"]
            assert table["d"].to_pylist() == [1001, None]
            assert table["t"].to_pylist() == ["00:00:00.000001001", None]


def test_attributes_of_taken_names_are_renamed_and_told():
    given = pa.table({"score": [1], "age": [2], "source_score": [3], "id": [4]})
    new, changes = rename_taken(given, ("index", "id", "score"))
    assert changes == {"score": "source_source_score", "id": "source_id"}
    assert new.to_pydict() == {"source_source_score": [1], "age": [2], "source_score": [3], "source_id": [4]}
    assert rename_taken(new, ("index", "id", "score")) == (new, {})


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 10**18]).cast(pa.timestamp("us")),
        pa.array([0, 2**40]).cast(pa.timestamp("s")),
        pa.array([0, 2**30], pa.int32()).cast(pa.date32()),
        pa.array([0, 10**18]).cast(pa.date64()),
        pa.array([0, 2**62]).cast(pa.duration("s")),
        pa.array([0, 5]).cast(pa.timestamp("us", "Mars/Phobos")),
    ],
    ids=lambda column: str(column.type),
)
def test_times_that_python_does_not_have_are_refused_with_their_column(tmp_path, column):
    parquet.write_table(pa.table({"file": ["a", "b"], "when": column}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"The column 'when', of the type .* Python does not have"):
        read_table(tmp_path / "t.parquet")


def test_columns_of_views_are_matched_as_text(tmp_path):
    names = pa.array(["b.png", "a.png"], pa.string_view())
    parquet.write_table(pa.table({"file": names, "kind": names}), tmp_path / "t.parquet")
    matched = match(read_table(tmp_path / "t.parquet"), "file", ["a.png", "b.png"], ".")
    assert matched.columns["kind"].to_pylist() == ["a.png", "b.png"]
