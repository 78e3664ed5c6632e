"""Define data sets of images in parquet or arrow files.

These are the formats of Hugging Face's data sets.
"""

import collections
import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import compute, parquet

from influence_ssl_jax.data.arrow import FAULTS, MAGIC, ArrowFile, check_rows, is_damage, name_fields
from influence_ssl_jax.data.attributes import check_names, in_microseconds, number_classes, scalars, texts
from influence_ssl_jax.data.encoded import Encoded, UndecodableImage, unreachable_error
from influence_ssl_jax.data.examples import UnreachableError, digest, note_names, repeated_ids
from influence_ssl_jax.data.listing import StoredFile, find_files
from influence_ssl_jax.data.source import Source, absolute_path
from influence_ssl_jax.errors import DataError, printable

pc: Any = compute  # its functions are made when it is imported: no type checker knows them

Group: TypeAlias = tuple[int, int]
"""The number of a file, and that of a row group in it."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")

ENDINGS = (".parquet", ".pq", ".arrow")


@dataclasses.dataclass(frozen=True)
class Parquet(Source):
    """Parquet or arrow files with a column of encoded images.

    The column contains bytes, or records {bytes, path} as Hugging Face writes them. The other columns are attributes;
    columns of lists and records are left out, with a note. Whole row groups are read, and those that were used last stay
    in memory. This costs nothing if examples are read in order. In random order (training), if the data set is larger than
    `kept_mib`, every example reads its whole row group: write row groups of about 100 rows then. The id of an example is
    its value in the column that `id` names, or else the path of its image, or else file and row.

    Attributes:
        path: A file, a folder, or a pattern such as `data/train-*.parquet`; local, or an address that fsspec knows.
        image: The column of images; None takes `image` or the only column of images.
        label: The column of classes; None takes `label`, or the first column that Hugging Face declares a class label.
        id: The column of ids; None takes the path of the image, or file and row.
        kept_mib: Mebibytes of row groups that stay in memory.

    Examples:
        >>> import pathlib, tempfile
        >>> import pyarrow as pa
        >>> from pyarrow import parquet
        >>> from influence_ssl_jax import Parquet
        >>> image = b"P5 2 1 255 " + bytes(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = str(pathlib.Path(folder) / "images.parquet")
        ...     parquet.write_table(pa.table({"image": [image, image], "label": ["cat", "ant"]}), file)
        ...     opened = Parquet(file).open()
        ...     opened.labels().tolist(), opened.class_names()
        ([1, 0], ('ant', 'cat'))
    """

    path: str
    image: str | None = None
    label: str | None = None
    id: str | None = None
    kept_mib: int = 1024

    def absolute(self) -> "Source":
        """Return the same data set with an absolute path."""
        return dataclasses.replace(super().absolute(), path=absolute_path(self.path))

    def _open(self) -> "OpenParquet":
        """Read the footers, and every column but the images.

        Raises:
            DataError: If there are no such files, one is damaged, their columns differ, or a column cannot be used.
        """
        files = [_file(each) for each in find_files(self.path, ENDINGS)]
        schema = files[0].schema
        for file in files[1:]:
            if not file.schema.equals(schema):
                raise DataError(
                    f"{file.stored.name} has other columns than {files[0].stored.name}: {_describe(file.schema)} instead of "
                    f"{_describe(schema)}. Give files with equal columns."
                )
        check_names(files[0].stored.name, schema.names)
        return OpenParquet(self, files, schema, _image_column(schema, self.image))


def _describe(schema: pa.Schema) -> str:
    """Write names and types of columns."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _holds_images(kind: pa.DataType) -> bool:
    """Test whether a column of this type can contain encoded images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _image_column(schema: pa.Schema, wanted: str | None) -> str:
    """Return the image column: the wanted one, `image`, or the only one.

    Raises:
        DataError: If there is no such column, or there are several.
    """
    columns = [field.name for field in schema if _holds_images(field.type)]
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"There is no column {wanted!r} of encoded images; the columns are {_describe(schema)}.")
        return wanted
    if "image" in columns or len(columns) == 1:
        return "image" if "image" in columns else columns[0]
    instead = f"several: {', '.join(columns)}; name one with image=…" if columns else f"none: {_describe(schema)}"
    raise DataError(
        "A data set needs one column of encoded images (bytes, or records with a field `bytes`, one image in each row); "
        f"this one has {instead}."
    )


class ParquetFile:
    """A parquet file and its footer.

    It is read by one thread at a time.

    Attributes:
        stored: The file.
        sizes: Number of rows of every row group.
        schema: The columns.
    """

    def __init__(self, file: StoredFile) -> None:
        """Open a file.

        Raises:
            pa.ArrowException, OSError: If it is damaged, or cannot be read.
        """
        self.stored = file
        self._lock = threading.Lock()
        # Not mapped into memory: if a mapped file is cut short by another program, reading it ends this one.
        self._reader = parquet.ParquetFile(file.path if file.is_local else file.open())
        self.schema: pa.Schema = self._reader.schema_arrow
        groups = range(self._reader.num_row_groups)
        self.sizes = [self._reader.metadata.row_group(k).num_rows for k in groups]

    def group(self, number: int, columns: list[str]) -> pa.Table:
        """Read some columns of a row group."""
        with self._lock:
            return check_rows(self._reader.read_row_group(number, columns), self.sizes[number])

    def read(self, columns: list[str]) -> pa.Table:
        """Read some columns of all rows."""
        return pa.concat_tables([self.group(k, columns) for k in range(len(self.sizes))])

    def paths(self, column: str) -> list[str | None]:
        """Return the paths in a column of records {bytes, path}."""
        tables = (self.group(k, [f"{column}.path"]) for k in range(len(self.sizes)))
        return [path for table in tables for path in pc.struct_field(table[column], "path").to_pylist()]

    def layout(self) -> str:
        """Describe how the rows are stored.

        This distinguishes most files of the same size.
        """
        groups = (self._reader.metadata.row_group(k) for k in range(len(self.sizes)))
        return str([[group.column(c).total_compressed_size for c in range(group.num_columns)] for group in groups])


AnyFile: TypeAlias = ParquetFile | ArrowFile


def _file(file: StoredFile) -> AnyFile:
    """Open a file: read its footer or the lengths of its batches.

    Raises:
        DataError: If the file is damaged, or cannot be read.
    """
    try:
        name = file.path.lower()
        of_arrow = name.endswith(".arrow") or (not name.endswith(ENDINGS) and file.read(0, len(MAGIC)) == MAGIC)
        opened = ArrowFile(file) if of_arrow else ParquetFile(file)
        name_fields(opened.schema)  # in a damaged file they may not be text
        return opened
    except FAULTS as error:
        if not is_damage(error, file.size):
            raise unreachable_error(repr(file.path), error) from error
        raise DataError(f"{file.path!r} is damaged or no {file.path.rpartition('.')[2]} file: {error}") from error


class _Kept:
    """A cache of the row groups that were used last.

    It holds their images, or why they are damaged.
    """

    def __init__(self, files: Sequence[AnyFile], column: str, limit: int) -> None:
        self._files, self._column, self._limit = files, column, limit
        self._groups: collections.OrderedDict[Group, pa.ChunkedArray | str] = collections.OrderedDict()
        self._lock, self._reading = threading.Lock(), [threading.Lock() for _ in files]

    def column(self, group: Group) -> pa.ChunkedArray | str:
        """Return the images of a row group, or why it is damaged."""
        with self._reading[group[0]]:
            with self._lock:
                if group in self._groups:
                    self._groups.move_to_end(group)
                    return self._groups[group]
            rows = self._read(group)
            with self._lock:
                self._groups[group] = rows
                while sum(map(_bytes, self._groups.values())) > self._limit and len(self._groups) > 1:
                    self._groups.popitem(last=False)
            return rows

    def _read(self, group: Group) -> pa.ChunkedArray | str:
        file = self._files[group[0]]
        try:
            return file.group(group[1], [self._column])[self._column]
        except FAULTS as error:
            if not is_damage(error, file.stored.size):
                raise UnreachableError(f"{file.stored.path!r}: {error}") from error
            return f"row group {group[1]} of {file.stored.name} is damaged: {error}"


def _bytes(held: pa.ChunkedArray | str) -> int:
    """Return the memory of an entry of the cache."""
    return len(held) if isinstance(held, str) else held.nbytes


class _Labels(NamedTuple):
    """Each row's class as a number, and the classes' names or values."""

    numbers: Int[np.ndarray, " rows"]
    values: tuple[str, ...]


class OpenParquet(Encoded):
    """An opened data set of parquet or arrow files.

    Its rows are those of one file after the other.
    """

    def __init__(self, settings: Parquet, files: Sequence[AnyFile], schema: pa.Schema, image: str) -> None:
        self._files, self._image, self._settings = files, image, settings
        self._groups = [(f, g) for f, file in enumerate(files) for g in range(len(file.sizes))]
        self._ends = np.cumsum([files[f].sizes[g] for f, g in self._groups], dtype=np.int64)
        self._kept = _Kept(files, image, settings.kept_mib * 2**20)
        self._names = _class_names(schema)
        further = [field for field in schema if field.name != image]
        left = [field.name for field in further if pa.types.is_nested(field.type) or _holds_images(field.type)]
        self._table = self._read([field.name for field in further if field.name not in left])
        if settings.id is not None and settings.id not in self._table.column_names:
            raise DataError(f"There is no column {settings.id!r} of ids; the columns are {_describe(schema)}.")
        self._ids = self._read_ids(schema)
        self._labels = self._read_labels(schema)
        self._notes = (*note_names("columns that cannot be attributes, left out", left), *repeated_ids(self._ids))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _id(self, index: int) -> str:
        return self._ids[index]

    def _class(self, index: int) -> int:
        return int(self._labels.numbers[index])

    def class_names(self) -> tuple[str, ...] | None:
        """Return the classes' names or values, in order of their numbers."""
        return self._labels.values or None

    def _stored(self, index: int) -> bytes:
        """Return the encoded image of a row."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        held = self._kept.column(self._groups[number])
        if isinstance(held, str):
            raise UndecodableImage(held)
        start = int(self._ends[number - 1]) if number else 0
        return _image_bytes(held[index - start].as_py())

    def ids(self) -> Sequence[str]:
        """Return the ids of all rows."""
        return self._ids

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every row, −1 if it has none."""
        return self._labels.numbers

    def attributes(self) -> pa.Table | None:
        """Return every column but images and ids; class labels become names."""
        table = self._table.drop_columns([self._settings.id] if self._settings.id else [])
        for name in table.column_names:
            if name in self._names:
                names = pa.array(self._names[name])
                known = pc.if_else(_is_class(table[name], len(names)), table[name], None)
                table = table.set_column(table.column_names.index(name), name, names.take(known.combine_chunks()))
        return table if table.column_names else None

    @functools.cached_property
    def _members(self) -> str:
        files = [f"{file.stored.name} {sum(file.sizes)}" for file in self._files]
        known = digest(*self._labels.values, self._labels.numbers.tobytes())
        columns = (str(column.to_pylist()) for column in self._table.columns)
        schema = str(self._table.schema.remove_metadata())
        return digest("parquet", self._image, *files, digest(*self._ids), known, schema, *columns)

    def fingerprint(self) -> str:
        """Return a hash of files, attributes and classes.

        Names, sizes and row groups of the files are part of it; the bytes of the images are not: if an image is replaced
        by one of the same compressed size, the hash stays.
        """
        files = (f"{file.stored.size} {file.layout()}" for file in self._files)
        return digest(self._members, *files)

    def members(self) -> str:
        """Return a hash of which rows there are.

        It covers names and numbers of rows of the files, ids, attributes and classes.
        """
        return self._members

    def notes(self) -> tuple[str, ...]:
        """Return notes on columns that are left out and on repeated ids."""
        return self._notes

    def _read(self, columns: list[str]) -> pa.Table:
        """Read some columns of all rows.

        Raises:
            DataError: If they are damaged.
        """
        if not columns:
            return pa.table({})
        return in_microseconds(pa.concat_tables([_use(file, columns, file.read, columns) for file in self._files]))

    def _read_ids(self, schema: pa.Schema) -> list[str]:
        """Return all rows' ids: a column, images' paths, or file and row."""
        ids: list[str | None] = [None] * len(self)
        kind = schema.field(self._image).type
        if self._settings.id is not None:
            ids = texts(self._table[self._settings.id], f"The column {self._settings.id!r}")
        elif pa.types.is_struct(kind) and any(field.name == "path" for field in kind):
            ids = [path for file in self._files for path in _use(file, ["the images' paths"], file.paths, self._image)]
        places = (
            f"{self._files[f].stored.name}/{k}" for f, file in enumerate(self._files) for k in range(sum(file.sizes))
        )
        return [printable(name or place) for name, place in zip(ids, places, strict=True)]

    def _read_labels(self, schema: pa.Schema) -> _Labels:
        """Read the classes.

        Raises:
            DataError: If there is no such column, or it has no classes.
        """
        named = self._settings.label
        if named is None:
            named_columns = [name for name in ("label", *self._names) if name in self._table.column_names]
            if not named_columns:
                return _Labels(np.full(len(self), -1, np.int32), ())
            named = named_columns[0]
        elif named not in schema.names:
            raise DataError(f"There is no column {named!r} of classes; the columns are {_describe(schema)}.")
        elif named not in self._table.column_names:
            raise DataError(
                f"The label column {named!r} contains values of type {schema.field(named).type}; give a column with one "
                "value per row."
            )
        what = f"The label column {named!r}"
        if named not in self._names:
            known = number_classes(self._table[named], what)
            return _Labels(known.labels, known.values)
        column, names = scalars(self._table[named], what), self._names[named]
        numbers = pc.fill_null(pc.if_else(_is_class(column, len(names)), column, -1), -1)
        return _Labels(numbers.to_numpy().astype(np.int32), tuple(names))


def _use(file: AnyFile, what: Sequence[str], read: Callable[[Argument], Result], argument: Argument) -> Result:
    """Return `read(argument)` of a file.

    Args:
        file: The file.
        what: What is read, for the message.
        read: A method of the file.
        argument: Its argument.

    Raises:
        DataError: If that is damaged, or cannot be read.
    """
    try:
        return read(argument)
    except FAULTS as error:
        if not is_damage(error, file.stored.size):
            raise unreachable_error(repr(file.stored.path), error) from error
        raise DataError(
            f"{file.stored.path!r} is damaged ({', '.join(what)}): {error}. Write the file again, or leave it out."
        ) from error


def _is_class(column: pa.ChunkedArray, count: int) -> pa.ChunkedArray:
    """Test which values are numbers of classes, 0 to `count` − 1."""
    return pc.and_(pc.greater_equal(column, 0), pc.less(column, count))


def _image_bytes(value: Any) -> bytes:
    """Return the bytes of an image.

    Raises:
        UndecodableImage: If the row has none.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise UndecodableImage(
            "the row has no image" if path is None else "the row has the path of an image and not the image"
        )
    return content


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return class names of columns that Hugging Face declares class labels."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described["info"]["features"]
        classes = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # written by another program, or absent
        return {}
    plain = {
        name: [printable(str(each)) for each in names] for name, names in classes.items() if isinstance(names, list)
    }
    return {
        name: names
        for name, names in plain.items()
        if name in schema.names and pa.types.is_integer(schema.field(name).type)
    }
