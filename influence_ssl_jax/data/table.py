"""Tables of attributes, matched to files by name."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from influence_ssl_jax.data.source import counted
from influence_ssl_jax.errors import DataError


class Matched(NamedTuple):
    """A table brought into the order of the files.

    Attributes:
        columns: One row per file, null where the table has none; without the column of file names.
        notes: Rows without file, files without row, repeated rows: counted.
    """

    columns: pa.Table
    notes: tuple[str, ...]


MAX_CELLS, MAX_BYTES = 1_000_000_000, 8 * 2**30
"""Of a parquet file, whose few bytes may stand for many."""


def read_table(path: Path) -> pa.Table:
    """A CSV, TSV or parquet file.

    Raises:
        DataError: It is missing, cannot be read as what its name says, or would unpack to more than memory should hold.
    """
    if not path.is_file():
        raise DataError(f"There is no table {path}; give the path of a .csv, .tsv or .parquet file.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _unpacked(path)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"The table {path} cannot be read: {error}") from error


def _unpacked(path: Path) -> pa.Table:
    found = parquet.read_metadata(path)
    size = sum(found.row_group(k).total_byte_size for k in range(found.num_row_groups))
    if found.num_rows * found.num_columns > MAX_CELLS or size > MAX_BYTES:
        raise DataError(
            f"The table {path} would unpack to {found.num_rows:,} rows of {found.num_columns} columns and {size:,} bytes, "
            f"more than {MAX_CELLS:,} cells or {MAX_BYTES:,} bytes. Keep the columns and rows that are needed."
        )
    return parquet.read_table(path)


def match(table: pa.Table, file_column: str, files: Sequence[str], folder: str) -> Matched:
    """The rows of `table` in the order of `files`.

    A row names its file relative to the folder of images, or relative to the table's own folder, whichever explains
    more rows. Only names are compared; no path of a table is ever opened.

    Args:
        table: The attributes.
        file_column: The column of file names.
        files: The files that exist, relative to the folder of images, with forward slashes.
        folder: The folder of images, relative to the table's own folder; `.` where they are the same.

    Raises:
        DataError: The column is missing, or a row names a file outside both folders.
    """
    if file_column not in table.column_names:
        raise DataError(
            f"The table has no column {file_column!r} of file names; it has {', '.join(table.column_names)}."
        )
    named = [_inside(str(name.as_py()), row) for row, name in enumerate(table[file_column])]
    known = set(files)
    beside = [posixpath.relpath(name, folder) for name in named]
    rows_of = beside if sum(n in known for n in beside) > sum(n in known for n in named) else named
    place: dict[str, int] = {}
    repeated = [name for row, name in enumerate(rows_of) if place.setdefault(name, row) != row]
    notes = (
        *counted(
            "table rows that name no image, left out",
            [n for n, m in zip(named, rows_of, strict=True) if m not in known],
        ),
        *counted("images without a table row, kept without attributes", [name for name in files if name not in place]),
        *counted("table rows that name a file again, the first row counts", repeated),
    )
    order = pa.array([place.get(name) for name in files], pa.int64())
    return Matched(table.drop_columns([file_column]).take(order), notes)


def classes(column: pa.ChunkedArray) -> np.ndarray:
    """Whole numbers as they are, anything else numbered in sorted order; −1 for null."""
    values = column.to_pylist()
    if pa.types.is_integer(column.type):
        return np.array([-1 if value is None else value for value in values], np.int32)
    number = {value: k for k, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([-1 if value is None else number[value] for value in values], np.int32)


def _inside(name: str, row: int) -> str:
    plain = posixpath.normpath(name.replace("\\", "/"))
    if posixpath.isabs(plain) or plain.split("/")[0] == ".." or ":" in plain.split("/")[0]:
        raise DataError(
            f"Row {row} of the table names {name!r}, outside the folder of images; use relative paths inside it."
        )
    return plain
