"""Read arrow files by batches, each checked before it is used."""

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import compute, ipc

from influence_ssl_jax.data.examples import is_temporary
from influence_ssl_jax.data.listing import StoredFile
from influence_ssl_jax.errors import DataError

pc: Any = compute  # its functions are made when it is imported: no type checker knows them
FAULTS = (pa.ArrowException, UnicodeDecodeError, OSError, MemoryError)
"""The errors with which pyarrow answers damaged files, and disks and memory that fail for now."""
MAGIC = b"ARROW1"
"""How a file of the format with a footer begins."""
_RATIO = 256
"""Images are not compressed to a smaller share of their size than 1 / 256, in any format of arrow or parquet."""


def is_damage(error: BaseException, size: int) -> bool:
    """Test whether an error of pyarrow means a damaged file.

    Other errors are those of a disk or of memory at present.

    Args:
        error: One of `FAULTS`.
        size: Size of the file in bytes. If reading takes more memory than its whole content can need, its lengths are
            damaged.

    Examples:
        >>> import pyarrow as pa
        >>> from influence_ssl_jax.data.arrow import is_damage
        >>> error = pa.ArrowMemoryError("malloc of size 576460752303423552 failed")
        >>> is_damage(error, 4000), is_damage(MemoryError(), 4000)
        (True, False)
    """
    if isinstance(error, MemoryError):
        asked = re.search(r"size (\d+)", str(error))
        return asked is not None and int(asked[1]) > _RATIO * size
    return not isinstance(error, OSError) or (error.errno is None and not is_temporary(error))


def name_fields(fields: Iterable[pa.Field]) -> list[str]:
    """Return the names of columns and of the columns inside them.

    Raises:
        UnicodeDecodeError: If one is not text.
    """
    named = list[str]()
    for field in fields:
        inner = (field.type.field(k) for k in range(field.type.num_fields))
        named += [field.name, *name_fields(inner)]
    return named


def check_rows(batch: pa.RecordBatch | pa.Table, rows: int) -> pa.Table:
    """Return rows as a table, after a check.

    Their number, every offset and every text are checked.

    Reading rows of a damaged file without this check can end the process.

    Raises:
        pa.ArrowException: If they are damaged.
    """
    if batch.num_rows != rows:
        raise pa.ArrowInvalid(f"{batch.num_rows} rows in place of {rows}")
    batch.validate(full=True)
    return pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch


class ArrowFile:
    """A file in either of arrow's two formats.

    It is read by one thread at a time.

    The file is mapped into memory only while it is opened: if a mapped file is cut short by another program, or its disk
    fails, reading it ends the process. Opening reads lengths, names and small columns, and not the images.

    Attributes:
        stored: The file.
        sizes: Number of rows of every batch.
        schema: The columns.
    """

    def __init__(self, file: StoredFile) -> None:
        """Open a file.

        Raises:
            DataError: If it is on another machine.
            pa.ArrowException, OSError: If it is damaged, or cannot be read.
        """
        if not file.is_local:
            raise DataError(
                f"{file.path!r} is an arrow file on another machine. Copy it to this machine, or write it as parquet."
            )
        self.stored = file
        self._lock = threading.Lock()
        self._file = pa.OSFile(file.path)
        self._has_footer = self._file.read(len(MAGIC)) == MAGIC
        with pa.memory_map(file.path) as mapped:
            self.schema: pa.Schema = self._reader(mapped).schema
            self.sizes = [batch.num_rows for batch in self._batches(mapped)]
            self._messages = [] if self._has_footer else _list_messages(mapped)

    def group(self, number: int, columns: list[str]) -> pa.Table:
        """Read some columns of a batch."""
        with self._lock:
            if self._has_footer:
                return check_rows(self._reader(self._file, columns).get_batch(number), self.sizes[number])
            # A stream begins with the schema. Batches may need any dictionary that precedes them.
            last = [k for k, (kind, _, _) in enumerate(self._messages) if kind == "record batch"][number]
            needed = [self._messages[k] for k in range(last + 1) if k == last or self._messages[k][0] != "record batch"]
            parts = list[bytes]()
            for _, start, end in needed:
                self._file.seek(start)
                parts.append(self._file.read(end - start))
            return check_rows(
                self._reader(pa.BufferReader(b"".join(parts)), columns).read_next_batch(), self.sizes[number]
            )

    def read(self, columns: list[str]) -> pa.Table:
        """Read some columns of all rows, into memory of their own."""
        sink = pa.BufferOutputStream()
        with self._lock, pa.memory_map(self.stored.path) as mapped:
            reader = self._reader(mapped, columns)
            with ipc.new_stream(sink, reader.schema) as writer:
                for batch, rows in zip(self._batches(mapped, columns), self.sizes, strict=True):
                    writer.write_table(check_rows(batch, rows))
        return ipc.open_stream(sink.getvalue()).read_all().select(columns)

    def paths(self, column: str) -> list[str | None]:
        """Return the paths in a column of records {bytes, path}."""
        stored = list[str | None]()
        with self._lock, pa.memory_map(self.stored.path) as mapped:
            for batch, rows in zip(self._batches(mapped, [column]), self.sizes, strict=True):
                stored += pc.struct_field(check_rows(batch, rows)[column], "path").to_pylist()
        return stored

    def layout(self) -> str:
        """Describe how the rows are stored."""
        return str(self.sizes)

    def _reader(self, content: pa.NativeFile, columns: list[str] | None = None) -> Any:
        """Return a reader of all columns, or of some."""
        content.seek(0)
        fields = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        options = ipc.IpcReadOptions(included_fields=fields)
        return (ipc.open_file if self._has_footer else ipc.open_stream)(content, options=options)

    def _batches(self, content: pa.NativeFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the batches in order, unchecked."""
        reader = self._reader(content, columns)
        if not self._has_footer:
            yield from reader
            return
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _list_messages(stream: pa.NativeFile) -> list[tuple[str, int, int]]:
    """List the messages of a stream: kind, first byte, and end."""
    stream.seek(0)
    reader, pieces = ipc.MessageReader.open_stream(stream), []
    with contextlib.suppress(StopIteration):
        while True:
            start = stream.tell()
            pieces.append((reader.read_next_message().type, start, stream.tell()))
    return pieces
