"""Read tables of attributes, and match them to files by name."""

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

from influence_ssl_jax.data.arrow import check_rows
from influence_ssl_jax.data.examples import note_names
from influence_ssl_jax.errors import DataError, printable

pc: Any = compute  # its functions are made when it is imported: no type checker knows them


class Matched(NamedTuple):
    """A table in the order of the files.

    Attributes:
        columns: One row per file, null for files without a row; without the column of file names.
        notes: Rows without a file, files without a row and repeated rows, with counts.
    """

    columns: pa.Table
    notes: tuple[str, ...]


class Classes(NamedTuple):
    """A column of classes as numbers.

    Attributes:
        labels: For each row the position of its value in `values`, −1 if it has no value.
        values: The values that occur, in sorted order, as text.
    """

    labels: Int[np.ndarray, " rows"]
    values: tuple[str, ...]


MAX_CELLS, MAX_BYTES = 1_000_000_000, 8 * 2**30
"""Limits of the cells and bytes of a table in memory; a small parquet file may expand to many."""
_LARGEST_BLOCK = 2**30


def read_table(path: Path, text: Sequence[str] = (), encoding: str = "utf-8") -> pa.Table:
    r"""Read a CSV, TSV or parquet file, and check column names.

    Args:
        path: The file.
        text: Columns that are read as text, for example names that look like numbers with leading zeros.
        encoding: Encoding of a CSV or TSV file.

    Raises:
        DataError: If the file is missing, damaged, larger than the limits, or in another encoding, or if a column has no
            name or the name of another one.

    Examples:
        >>> import pathlib, tempfile
        >>> from influence_ssl_jax.data.attributes import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "attributes.csv"
        ...     size = file.write_text("file,age\n1.png,30\n2.png,\n")
        ...     read_table(file)["age"].to_pylist()
        [30, None]
    """
    if not path.is_file():
        raise DataError(f"There is no table {str(path)!r}; give the path of a .csv, .tsv or .parquet file.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = _read_parquet(path)
        else:
            table = _read_text(path, text, encoding)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"The table {path} cannot be read: {error}") from error
    check_names(f"The table {path}", table.column_names)
    for place, name in enumerate(table.column_names):
        if table[name].type in (pa.string_view(), pa.binary_view()):  # Arrow cannot take rows of views
            table = table.set_column(place, name, scalars(table[name], name))
    return in_microseconds(table)


def in_microseconds(table: pa.Table) -> pa.Table:
    """Return a table with times and durations in microseconds.

    Python has no finer ones; these become text or numbers.

    Examples:
        >>> import pyarrow as pa
        >>> from influence_ssl_jax.data.attributes import in_microseconds
        >>> table = pa.table({"t": pa.array([1_000, 1_001], pa.time64("ns"))})
        >>> in_microseconds(table)["t"].to_pylist(), str(in_microseconds(table[:1])["t"].type)
        (['00:00:00.000001000', '00:00:00.000001001'], 'time64[us]')
    """
    for place, field in enumerate(table.schema):
        if getattr(field.type, "unit", "") != "ns":
            continue
        column = table[field.name]
        if pa.types.is_timestamp(field.type):
            wanted, finer = pa.timestamp("us", field.type.tz), pa.string()
        elif pa.types.is_time(field.type):
            wanted, finer = pa.time64("us"), pa.string()
        else:
            wanted, finer = pa.duration("us"), pa.int64()
        try:
            column = column.cast(wanted)
        except pa.ArrowInvalid:  # some value has nanoseconds
            column = column.cast(finer)
        table = table.set_column(place, field.name, column)
    for name in table.column_names:
        _check_times(name, table[name])
    return table


def _check_times(name: str, column: pa.ChunkedArray) -> None:
    """Refuse times that Python does not have, and unknown time zones.

    Raises:
        DataError: If the column holds some.
    """
    kind = column.type
    if not (pa.types.is_temporal(kind) and column.null_count < len(column)):
        return
    ends = pc.min_max(column.cast(pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()))
    try:
        for end in ends.values():
            end.cast(kind).as_py()
    except (OverflowError, ValueError) as error:
        raise DataError(
            f"The column {name!r}, of the type {kind}, holds a time that Python does not have: {error}. Write it as text "
            "or as a number, or leave it out."
        ) from error


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse columns without a name, and several columns with the same name.

    Raises:
        DataError: If there are such columns; the message gives their positions, from 1.
    """
    nameless = [k + 1 for k, name in enumerate(names) if not name.strip()]
    if nameless:
        raise DataError(
            f"{what} has no name for column {', '.join(map(str, nameless))} of {len(names)}: name or remove it (pandas "
            "writes such a column for its row numbers; index=False leaves it out)."
        )
    repeated = [name for name, times in collections.Counter(names).items() if times > 1]
    if repeated:
        places = [k + 1 for k, name in enumerate(names) if name == repeated[0]]
        raise DataError(
            f"{what} has {len(places)} columns named {repeated[0]!r} (columns {', '.join(map(str, places))}). Rename or "
            "remove all but one."
        )


def _read_text(path: Path, text: Sequence[str], encoding: str) -> pa.Table:
    """Read a CSV or TSV file."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"The table {path} has {size:,} bytes, more than the limit of {MAX_BYTES:,}. Keep only what is needed, or use "
            "parquet."
        )
    content = path.read_bytes()
    content = content if encoding.lower() in ("utf-8", "utf8") else _decode(content, path, encoding).encode()
    _decode(content, path, "utf-8")
    return csv.read_csv(
        pa.BufferReader(content),
        # One block, because a row must not be longer than a block.
        read_options=csv.ReadOptions(block_size=min(max(len(content) + 1, 2**20), _LARGEST_BLOCK)),
        parse_options=csv.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
    )


def _decode(content: bytes, path: Path, encoding: str) -> str:
    """Return the text of a file.

    Raises:
        DataError: If there is no such encoding, or the file is in another one; the message gives the line.
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
        likely = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin-1"
        raise DataError(
            f"Line {line} of the table {path} is not {encoding} ({printable(shown)!r}). Save the table as UTF-8, or name "
            f"its encoding; for a folder: --source.encoding {likely}."
        ) from None


def _read_parquet(path: Path) -> pa.Table:
    """Read a parquet file that does not exceed the limits."""
    metadata = parquet.read_metadata(path)
    size = sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    if metadata.num_rows * metadata.num_columns > MAX_CELLS or size > MAX_BYTES:
        raise DataError(
            f"The table {path} expands to {metadata.num_rows:,} rows of {metadata.num_columns} columns and {size:,} bytes, "
            f"more than the limit of {MAX_CELLS:,} cells or {MAX_BYTES:,} bytes. Keep only the columns and rows that "
            "are needed."
        )
    with parquet.ParquetFile(path) as file:  # `parquet.read_table` looks for partitions and fails at repeated names
        return check_rows(file.read(), metadata.num_rows)


def texts(column: pa.ChunkedArray, what: str) -> list[str | None]:
    """Return a column as text, None for rows without a value.

    Raises:
        DataError: If it contains lists or records, or bytes that are not UTF-8.
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
    """Test whether a value is text, or bytes of UTF-8."""
    try:
        return not isinstance(value, bytes) or bool(value.decode() or True)
    except UnicodeDecodeError:
        return False


def scalars(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Return a column with its values in plain types.

    Dictionaries, runs, views and types that others defined are removed.

    Raises:
        DataError: If it contains lists or records.
    """
    while (plain := _decode_layer(column)) is not None:
        column = plain
    if pa.types.is_nested(column.type):
        raise DataError(f"{what} contains values of type {column.type}; give a column with one value per row.")
    return column


def _decode_layer(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the same values with one layer of encoding less.

    It is None if there is no layer.
    """
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
    """Return the same attributes in types that a parquet table holds.

    Raises:
        DataError: A column is of a type that none can hold.
    """
    for place, name in enumerate(attributes.column_names):
        column = attributes[name]
        encoded = _is_encoded(column.type)
        while encoded and (plain := _decode_layer(column)) is not None:
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


def _is_encoded(kind: pa.DataType) -> bool:
    """Test whether values of a type are written without their encoding."""
    return (
        pa.types.is_dictionary(kind)
        or pa.types.is_run_end_encoded(kind)
        or kind in (pa.string_view(), pa.binary_view())
    )


def match(table: pa.Table, file_column: str, files: Sequence[str], folder: str) -> Matched:
    """Bring the rows of `table` into the order of `files`.

    Names in the table are relative to the folder of images or to the folder of the table: the one that fits more rows
    is taken. Names are compared in composed form (`compose`). No path of a table is opened.

    Args:
        table: The attributes.
        file_column: The column of file names.
        files: The files that exist, relative to the folder of images, with forward slashes.
        folder: The folder of images, relative to the folder of the table; `.` if they are the same.

    Raises:
        DataError: If the column is missing, a row names a file outside both folders, or no row names an image.

    Examples:
        >>> import pyarrow as pa
        >>> from influence_ssl_jax.data.attributes import match
        >>> table = pa.table({"file": ["b.png", "a.png", "c.png"], "age": [2, 1, 3]})
        >>> matched = match(table, "file", ["a.png", "b.png"], ".")
        >>> matched.columns["age"].to_pylist(), matched.notes
        ([1, 2], ('table rows that name no image, left out: 1 (c.png)',))
    """
    if file_column not in table.column_names:
        raise DataError(
            f"The table has no column {file_column!r} of file names; it has {', '.join(table.column_names)}. Name the "
            "column with --source.file-column."
        )
    given = texts(table[file_column], f"The table's column {file_column!r}")
    named = [None if name is None else compose(_relative_name(name, row)) for row, name in enumerate(given)]
    known = set(map(compose, files))
    beside = [None if name is None else posixpath.relpath(name, folder) for name in named]
    rows_of = beside if sum(n in known for n in beside) > sum(n in known for n in named) else named
    place: dict[str, int] = {}
    repeated = [n for row, n in enumerate(rows_of) if n is not None and place.setdefault(n, row) != row]
    if not known & place.keys():
        first = next((name for name in given if name), None)
        if first is None:
            raise DataError(f"The table names no file: of its {len(given)} rows, none has a name in {file_column!r}.")
        raise DataError(
            f"No row of the table names an image: its column {file_column!r} has names such as {first!r}, the images have "
            f"names such as {printable(files[0])!r}. Name another column with --source.file-column, or write the names of "
            "the files."
        )
    notes = (
        *note_names("table rows without a file name, left out", [f"row {k}" for k, n in enumerate(named) if n is None]),
        *note_names(
            "table rows that name no image, left out",
            [n for n, m in zip(named, rows_of, strict=True) if n is not None and m not in known],
        ),
        *note_names(
            "images without a table row, kept without attributes", [n for n in files if compose(n) not in place]
        ),
        *note_names("table rows that name a file again, the first row counts", repeated),
    )
    order = pa.array([place.get(compose(name)) for name in files], pa.int64())
    return Matched(table.drop_columns([file_column]).take(order), notes)


def compose(name: str) -> str:
    r"""Write each letter with an accent as one character (Unicode NFC).

    macOS writes such a letter as two characters, most tables as one.

    Examples:
        >>> from influence_ssl_jax.data.attributes import compose
        >>> len("e\u0301"), len(compose("e\u0301"))
        (2, 1)
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def number_classes(column: pa.ChunkedArray, what: str) -> Classes:
    """Number the values of a column in sorted order, from 0.

    Null, NaN and empty text mean that there is no class.

    Raises:
        DataError: If the column contains lists or records, or no value at all.

    Examples:
        >>> import pyarrow as pa
        >>> from influence_ssl_jax.data.attributes import number_classes
        >>> classes = number_classes(pa.chunked_array([["dog", None, "cat"]]), "The column")
        >>> classes.labels.tolist(), classes.values
        ([1, -1, 0], ('cat', 'dog'))
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
    """Test whether values of a type have a length in bytes."""
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def rename_taken(attributes: pa.Table, taken: Sequence[str]) -> tuple[pa.Table, dict[str, str]]:
    """Rename attributes whose name is taken to `source_<name>`.

    Return also the changes by their old name.
    """
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


def _relative_name(name: str, row: int) -> str:
    """Return a name from a table as a relative path without detours.

    Raises:
        DataError: If it leads outside the folder.
    """
    plain = posixpath.normpath(name.replace("\\", "/"))
    if posixpath.isabs(plain) or plain.split("/")[0] == ".." or ":" in plain.split("/")[0]:
        raise DataError(
            f"Row {row} of the table names {name!r}, which is outside the folder of images. Use relative paths inside it."
        )
    return plain
