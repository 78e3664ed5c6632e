import pyarrow as pa
import pytest
from pyarrow import parquet

from influence_ssl_jax.data.table import classes, match, read_table
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


def test_classes_number_text_in_sorted_order_and_keep_numbers():
    text = pa.chunked_array([["b", "a", None, "b"]])
    assert classes(text).tolist() == [1, 0, -1, 1]
    assert classes(pa.chunked_array([[7, None, 3]])).tolist() == [7, -1, 3]
    assert classes(pa.chunked_array([["only", "only"]])).tolist() == [0, 0]
