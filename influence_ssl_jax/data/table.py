"""Tables of attributes, matched to files by name."""

import collections
import posixpath
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import compute, csv, parquet

from influence_ssl_jax.data.source import counted
from influence_ssl_jax.errors import DataError, printable

pc: Any = compute  # its functions are made when it is imported: no type checker knows them


class Matched(NamedTuple):
    """A table brought into the order of the files.

    Attributes:
        columns: One row per file, null where the table has none; without the column of file names.
        notes: Rows without file, files without row, repeated rows: counted.
    """

    columns: pa.Table
    notes: tuple[str, ...]


class Classes(NamedTuple):
    """A column of classes as numbers.

    Attributes:
        labels: One per row, the place of its value among `values`; −1 where it has none.
        values: The values that occur, in sorted order, as text.
    """

    labels: Int[np.ndarray, " rows"]
    values: tuple[str, ...]


MAX_CELLS, MAX_BYTES = 1_000_000_000, 8 * 2**30
"""Of a parquet file, whose few bytes may stand for many."""
_LARGEST_BLOCK = 2**30


def read_table(path: Path, text: Sequence[str] = (), encoding: str = "utf-8") -> pa.Table:
    """Read a CSV, TSV or parquet file whole, and check that its columns can be told apart.

    Args:
        path: The file.
        text: Columns that are text whatever they look like, such as names that are numbers with leading zeros.
        encoding: Of a CSV or TSV file.

    Raises:
        DataError: It is missing, cannot be read as what its name says, would unpack to more than memory should hold, is
            in another encoding, or two of its columns have one name or one has none.
    """
    if not path.is_file():
        raise DataError(f"There is no table {str(path)!r}; give the path of a .csv, .tsv or .parquet file.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = _unpacked(path)
        else:
            table = _separated(path, text, encoding)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"The table {path} cannot be read: {error}") from error
    check_names(f"The table {path}", table.column_names)
    return table


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse columns without a name, and columns of one name.

    Raises:
        DataError: There are such columns; the message gives their places.
    """
    nameless = [k + 1 for k, name in enumerate(names) if not name.strip()]
    if nameless:
        raise DataError(
            f"{what} has no name for column {', '.join(map(str, nameless))} of {len(names)}: name or remove it (pandas "
            "writes one for its row numbers unless told index=False)."
        )
    repeated = [name for name, times in collections.Counter(names).items() if times > 1]
    if repeated:
        places = [k + 1 for k, name in enumerate(names) if name == repeated[0]]
        raise DataError(
            f"{what} has {len(places)} columns named {repeated[0]!r} (columns {', '.join(map(str, places))}), so neither "
            "can be meant by that name: rename or remove all but one."
        )


def _separated(path: Path, text: Sequence[str], encoding: str) -> pa.Table:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"The table {path} has {size:,} bytes, more than {MAX_BYTES:,}. Keep what is needed, or use parquet."
        )
    content = path.read_bytes()
    content = content if encoding.lower() in ("utf-8", "utf8") else _decoded(content, path, encoding).encode()
    _decoded(content, path, "utf-8")
    return csv.read_csv(
        pa.BufferReader(content),
        # One block, so that a row of any length is whole in it.
        read_options=csv.ReadOptions(block_size=min(max(len(content) + 1, 2**20), _LARGEST_BLOCK)),
        parse_options=csv.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
    )


def _decoded(content: bytes, path: Path, encoding: str) -> str:
    """Return the text of a file.

    Raises:
        DataError: There is no such encoding, or the file is in another one; the message gives the line.
    """
    try:
        return content.decode(encoding)
    except LookupError:
        raise DataError(
            f"There is no encoding {encoding!r}; common ones are utf-8, latin-1, cp1252 and utf-16."
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        shown = content[max(0, error.start - 20) : error.end + 20].decode("ascii", "backslashreplace")
        raise DataError(
            f"Line {line} of the table {path} is not {encoding} ({printable(shown)!r}). Save the table as UTF-8, or state "
            "its encoding, for a folder as --source.encoding latin-1."
        ) from None


def _unpacked(path: Path) -> pa.Table:
    found = parquet.read_metadata(path)
    size = sum(found.row_group(k).total_byte_size for k in range(found.num_row_groups))
    if found.num_rows * found.num_columns > MAX_CELLS or size > MAX_BYTES:
        raise DataError(
            f"The table {path} would unpack to {found.num_rows:,} rows of {found.num_columns} columns and {size:,} bytes, "
            f"more than {MAX_CELLS:,} cells or {MAX_BYTES:,} bytes. Keep the columns and rows that are needed."
        )
    with parquet.ParquetFile(path) as file:  # read_table would look for partitions and fail at names that repeat
        return file.read()


def texts(column: pa.ChunkedArray, what: str) -> list[str | None]:
    """Return a column as text, None where it has no value.

    Raises:
        DataError: It holds lists or records, or bytes that are not UTF-8.
    """
    plain = scalars(column, what)
    try:
        plain = plain.cast(pa.string())
    except pa.ArrowException as error:
        broken = next((k for k, value in enumerate(plain.to_pylist()) if not _is_text(value)), None)
        where = "" if broken is None else f" in row {broken}"
        raise DataError(f"{what} is not text{where}: {error}. Write it as UTF-8.") from error
    return plain.to_pylist()


def _is_text(value: object) -> bool:
    try:
        return not isinstance(value, bytes) or bool(value.decode() or True)
    except UnicodeDecodeError:
        return False


def scalars(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Return a column with its values as they are: without dictionaries, runs, views and types that others defined.

    Raises:
        DataError: It holds lists or records, of which no value is one thing.
    """
    while (plain := _unwrapped(column)) is not None:
        column = plain
    if pa.types.is_nested(column.type):
        raise DataError(f"{what} holds {column.type}: give a column with one value a row.")
    return column


def _unwrapped(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the same values one layer of encoding further in; None if there is none."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_run_end_encoded(kind):
        return pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type)
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary(), pa.float16(): pa.float32()}.get(kind)
    return None if plain is None else column.cast(plain)


def storable(attributes: pa.Table) -> pa.Table:
    """Return attributes of types that a parquet table can hold, with the same values.

    Raises:
        DataError: A column is of a type that none can hold.
    """
    for place, name in enumerate(attributes.column_names):
        column = attributes[name]
        encoded = _encoded(column.type)
        while encoded and (plain := _unwrapped(column)) is not None:
            column = plain
        attributes = attributes.set_column(place, name, column)
        try:
            parquet.write_table(attributes.select([place]).slice(0, 1), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise DataError(
                f"The attribute {name!r} is of the type {column.type}, which a table of scores cannot hold: {error}. "
                "Write it as numbers or text, or leave it out."
            ) from error
    return attributes


def _encoded(kind: pa.DataType) -> bool:
    """Whether values of a type are written without their encoding."""
    return (
        pa.types.is_dictionary(kind)
        or pa.types.is_run_end_encoded(kind)
        or kind in (pa.string_view(), pa.binary_view())
    )


def match(table: pa.Table, file_column: str, files: Sequence[str], folder: str) -> Matched:
    """Bring the rows of `table` into the order of `files`.

    A row names its file relative to the folder of images, or relative to the table's own folder, whichever explains
    more rows. Only names are compared, letters with accents alike however they are composed; no path of a table is ever
    opened.

    Args:
        table: The attributes.
        file_column: The column of file names.
        files: The files that exist, relative to the folder of images, with forward slashes.
        folder: The folder of images, relative to the table's own folder; `.` where they are the same.

    Raises:
        DataError: The column is missing, a row names a file outside both folders, or no row names an image.
    """
    if file_column not in table.column_names:
        raise DataError(
            f"The table has no column {file_column!r} of file names; it has {', '.join(table.column_names)}."
        )
    given = texts(table[file_column], f"The table's column {file_column!r}")
    named = [None if name is None else composed(_inside(name, row)) for row, name in enumerate(given)]
    known = set(map(composed, files))
    beside = [None if name is None else posixpath.relpath(name, folder) for name in named]
    rows_of = beside if sum(n in known for n in beside) > sum(n in known for n in named) else named
    place: dict[str, int] = {}
    repeated = [n for row, n in enumerate(rows_of) if n is not None and place.setdefault(n, row) != row]
    if not known & place.keys():
        first = next((name for name in given if name), None)
        raise DataError(
            f"No row of the table names an image: its column {file_column!r} has names such as {first!r}, the images have "
            f"names such as {printable(files[0])!r}. Name another column with --source.file-column, or write the names as "
            "the folder has them."
        )
    notes = (
        *counted("table rows without a file name, left out", [f"row {k}" for k, n in enumerate(named) if n is None]),
        *counted(
            "table rows that name no image, left out",
            [n for n, m in zip(named, rows_of, strict=True) if n is not None and m not in known],
        ),
        *counted("images without a table row, kept without attributes", [n for n in files if composed(n) not in place]),
        *counted("table rows that name a file again, the first row counts", repeated),
    )
    order = pa.array([place.get(composed(name)) for name in files], pa.int64())
    return Matched(table.drop_columns([file_column]).take(order), notes)


def composed(name: str) -> str:
    """Write letters with accents as one character each: a Mac writes them as two, most tables as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def classes(column: pa.ChunkedArray, what: str) -> Classes:
    """Number the values that occur in sorted order, whatever their type; null, NaN and empty text are no class.

    Raises:
        DataError: The column holds lists or records, or no value at all.
    """
    values = scalars(column, what)
    if pa.types.is_floating(values.type):
        values = pc.add(pc.if_else(pc.is_nan(values), None, values), 0.0)  # −0 becomes 0
    elif _is_text_or_bytes(values.type):
        values = pc.if_else(pc.equal(pc.binary_length(values), 0), None, values)
    known = pc.unique(values).drop_null()
    if not len(known):
        raise DataError(f"{what} has no value, so it gives no class.")
    try:
        known = known.take(pc.sort_indices(known))
    except pa.ArrowException as error:
        raise DataError(f"{what} holds {values.type}, which has no order: give numbers or text.") from error
    labels = pc.fill_null(pc.index_in(values, value_set=known), -1)
    named = (value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in known.to_pylist())
    return Classes(labels.to_numpy().astype(np.int32), tuple(map(printable, named)))


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type have a length in bytes."""
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def renamed(attributes: pa.Table, taken: Sequence[str]) -> tuple[pa.Table, dict[str, str]]:
    """Give every attribute whose name is taken another one, `source_<name>`; the changes by their old name."""
    changes: dict[str, str] = {}
    used = {*taken, *attributes.column_names}
    for name in attributes.column_names:
        if name in taken:
            new = f"source_{name}"
            while new in used:
                new = f"source_{new}"
            changes[name] = new
            used.add(new)
    return attributes.rename_columns([changes.get(name, name) for name in attributes.column_names]), changes


def _inside(name: str, row: int) -> str:
    plain = posixpath.normpath(name.replace("\\", "/"))
    if posixpath.isabs(plain) or plain.split("/")[0] == ".." or ":" in plain.split("/")[0]:
        raise DataError(
            f"Row {row} of the table names {name!r}, outside the folder of images; use relative paths inside it."
        )
    return plain
