"""Read arrays from files of weights: torch (`.pth`, `.pt`, `.ckpt`) and safetensors.

A file of torch is a pickle: a program for a stack machine, which can call any function of any module. Here the program
is *interpreted as data*: the functions that it names are recorded by name, and never imported or called. Dicts, lists,
numbers, texts and arrays are returned as such; everything else becomes `Foreign`, a name.
"""

import dataclasses
import io
import itertools
import json
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from influence_ssl_jax.checkpoint import CheckpointError

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
"""Types of arrays in files, little-endian."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file.

    Attributes:
        shape: Its shape.
        dtype: Name of its type, one of `DTYPES`.
        strides: Number of elements between neighbours on each axis.
        offset: Number of elements before the first one.
        stored: Number of elements in the stored bytes.
        read: Returns the stored bytes.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax.checkpoints.tensors import Tensor
        >>> Tensor.of(np.asarray([[1.0, 2.0]])).numpy().tolist()
        [[1.0, 2.0]]
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    offset: int
    stored: int
    read: Callable[[], bytes]

    @classmethod
    def of(cls, array: np.ndarray) -> "Tensor":
        """Wrap an array in memory."""
        flat = np.ascontiguousarray(array)
        strides = tuple(stride // flat.itemsize for stride in flat.strides)
        return cls(flat.shape, flat.dtype.name, strides, 0, flat.size, flat.tobytes)

    def numpy(self) -> np.ndarray:
        """Read the values.

        Raises:
            CheckpointError: If the stored bytes are fewer than the shape needs.
        """
        kind = DTYPES[self.dtype]
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        count = int(np.prod(self.shape))
        inside = min((self.offset, *self.strides), default=0) >= 0 and last < self.stored
        if inside and count > self.stored:
            raise CheckpointError(
                f"An array of shape {list(self.shape)} repeats its {self.stored} stored values, as torch's expand does. "
                "Save it with .clone()."
            )
        if count and not inside:
            raise CheckpointError(
                f"The file is damaged: an array of shape {list(self.shape)} reads outside its {self.stored} stored values. "
                "Copy it again."
            )
        content = self.read()
        if len(content) < self.stored * kind.itemsize:
            raise CheckpointError("The file is truncated: an array has fewer bytes than it should. Copy it again.")
        flat = np.frombuffer(content, kind, self.stored)
        strides = tuple(stride * kind.itemsize for stride in self.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides))


STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Types of torch's storages."""

LEGACY = 0x1950A86A20F9469CFC6C
"""The first number in a file of torch before version 1.6."""


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
    """An object that the pickle would create, by importing or calling `name`.

    It is not created.

    Attributes:
        name: Module and name.
    """

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """The bytes of one or several arrays.

    Attributes:
        dtype: Name of their type.
        key: Name of the storage in the file.
        count: Number of its values.
    """

    dtype: str
    key: str
    count: int


def read_torch(path: Path) -> Any:
    """Read the content of a file of torch.

    Returns:
        Dicts, lists, numbers, texts, `Tensor`s, and `Foreign` for everything else.

    Raises:
        CheckpointError: If it is not a file of torch, or is damaged or compressed.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except (ValueError, IndexError, KeyError, TypeError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not a file of torch, or damaged ({type(error).__name__}: {error}). Copy it again, or save it again "
            "with torch.save(model.state_dict(), file)."
        ) from error


def interpret(
    stream: io.BytesIO | io.BufferedReader, stored: Callable[[Storage], tuple[int, Callable[[], bytes]]]
) -> Any:
    """Interpret one pickle as data, and move the stream behind it.

    Args:
        stream: A stream at the start of the pickle.
        stored: A function from a storage to the number of its values and a function that reads its bytes.

    Raises:
        CheckpointError: If the pickle has an instruction that no file of weights needs.
        ValueError: If the pickle has no end.

    Examples:
        The pickle would call `print`; its interpretation records the name and calls nothing.

        >>> import io, pickle
        >>> from influence_ssl_jax.checkpoints.tensors import interpret
        >>> class Call:
        ...     def __reduce__(self):
        ...         return print, ("executed",)
        >>> interpret(io.BytesIO(pickle.dumps({"epoch": 3, "hook": Call()})), lambda storage: (0, bytes))
        {'epoch': 3, 'hook': Foreign(name='builtins.print')}
    """
    machine = _Machine(stored)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, argument)
    raise ValueError("a pickle without an end")


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
NUMBERS_AND_TEXTS = [
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
]
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
SKIPPED = ("PROTO", "FRAME")


class _Machine:
    """The stack machine of pickles, without everything that could run code."""

    def __init__(self, stored: Callable[[Storage], tuple[int, Callable[[], bytes]]]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.stored = stored

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        stack = self.stack
        if name in SKIPPED:
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in NUMBERS_AND_TEXTS:
            stack.append(argument)
        elif name in PUTS:
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in GETS:
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("POP", "DUP", "POP_MARK"):
            self.discard(name)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "FROZENSET"):
            self.collect(name)
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            self.fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else self.take(2)
            stack.append(Foreign(".".join(map(str, parts))))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"):
            self.make(name, argument)
        elif name == "BUILD":
            stack.pop()  # the state of an object that is not created
        elif name in ("BINPERSID", "PERSID"):
            stack.append(self.storage(stack.pop() if name == "BINPERSID" else argument))
        else:
            raise CheckpointError(
                f"The pickle inside has the instruction {name}, which no file of weights needs; refused."
            )

    def take(self, count: int) -> list[Any]:
        """Take the last values off the stack."""
        if count > len(self.stack):
            raise ValueError("a pickle that takes more than it has")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        return self.take(len(self.stack) - self.marks.pop())

    def discard(self, name: str) -> None:
        """Remove or repeat the last value, or remove all above the mark."""
        if name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "POP_MARK" or (self.marks and self.marks[-1] == len(self.stack)):
            self.to_mark()
        else:
            self.stack.pop()

    def collect(self, name: str) -> None:
        """Make a tuple, list or dict from the last values."""
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.take(int(name[-1]))))
            return
        items = self.to_mark()
        if name == "DICT":
            self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        else:
            self.stack.append(items if name == "LIST" else tuple(items))

    def fill(self, name: str) -> None:
        """Put the last values into the list or dict below them.

        A `Foreign` object takes none.
        """
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self.take(count) if count else self.to_mark()
        target = self.stack[-1]
        if isinstance(target, dict) and name.startswith("SETITEM"):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, list) and not name.startswith("SETITEM"):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ValueError(f"a pickle that puts items into a {type(target).__name__}")

    def make(self, name: str, argument: Any) -> None:
        """Record a call's result as `Foreign`; create dicts, arrays and sizes."""
        if name == "INST":
            self.to_mark()
            self.stack.append(Foreign(argument.replace(" ", ".")))
            return
        if name == "OBJ":
            parts = self.to_mark()
            function, given = parts[0], tuple(parts[1:])
        elif name == "NEWOBJ_EX":
            function, given, _ = self.take(3)
        else:
            function, given = self.take(2)
        known = function.name if isinstance(function, Foreign) else type(function).__name__
        if known == "collections.OrderedDict":
            self.stack.append(dict(*given))
        elif known in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            self.stack.append(self.tensor(*given[:4]))
        elif known == "torch._utils._rebuild_parameter":
            self.stack.append(given[0])
        elif known == "torch.Size":
            self.stack.append(tuple(given[0]))
        else:
            self.stack.append(Foreign(known))

    def storage(self, identity: Any) -> Any:
        """Return the storage that a persistent identity names."""
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            return Foreign("torch storage")
        _, kind, key, _, count = identity[:5]
        dtype = STORAGES.get(getattr(kind, "name", "").rpartition(".")[2])
        return Foreign(f"{getattr(kind, 'name', kind)}") if dtype is None else Storage(dtype, str(key), int(count))

    def tensor(self, storage: Any, offset: int, shape: Any, strides: Any) -> Any:
        """Return the array that torch would rebuild."""
        if not isinstance(storage, Storage):
            return storage
        count, read = self.stored(storage)
        return Tensor(tuple(map(int, shape)), storage.dtype, tuple(map(int, strides)), int(offset), count, read)


def _read_zip(path: Path) -> Any:
    """Read the layout since torch 1.6: an uncompressed zip.

    It has `data.pkl` and one member for each storage.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any("/code/" in name for name in members):
            raise CheckpointError(
                f"{path} holds a program of TorchScript, which would have to be executed. Save only its weights: "
                "torch.save(torch.jit.load(file).state_dict(), other_file)."
            )
        packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise CheckpointError(
                f"{path} has compressed members ({packed[0]}, …): torch does not write these; refused."
            )
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip file but not of torch: it has {len(pickles)} members data.pkl.")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
        if order != b"little":
            raise CheckpointError(f"{path} was written on a machine of {order.decode()} byte order; save it again.")
        content = archive.read(pickles[0])

    def stored(storage: Storage) -> tuple[int, Callable[[], bytes]]:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise CheckpointError(f"{path} is damaged: it lacks its member {name}. Copy it again.")

        def read() -> bytes:
            try:
                with zipfile.ZipFile(path) as archive:
                    return archive.read(name)
            except zipfile.BadZipFile as error:
                raise CheckpointError(f"{path} is damaged ({error}). Copy it again.") from error

        return members[name].file_size // DTYPES[storage.dtype].itemsize, read

    return interpret(io.BytesIO(content), stored)


def _read_legacy(path: Path) -> Any:
    """Read the layout before torch 1.6.

    It has five pickles (number, version, system, content, keys), then the bytes of every storage.
    """
    places: dict[str, tuple[int, int]] = {}  # known last, because the file has the arrays before their bytes
    kinds: dict[str, Storage] = {}

    def stored(storage: Storage) -> tuple[int, Callable[[], bytes]]:
        kinds[storage.key] = storage

        def read() -> bytes:
            start, size = places[storage.key]
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.read(size)

        return storage.count, read

    with path.open("rb") as stream:
        if interpret(stream, stored) != LEGACY:
            raise ValueError("its first number is not torch's")
        interpret(stream, stored)
        interpret(stream, stored)
        content, keys = interpret(stream, stored), interpret(stream, stored)
        for key in keys:
            (count,) = struct.unpack("<q", stream.read(8))
            if str(key) not in kinds or count != kinds[str(key)].count:
                raise ValueError(f"storage {key} has another size than its arrays say")
            size = math.prod((count, DTYPES[kinds[str(key)].dtype].itemsize))
            places[str(key)] = (stream.tell(), size)
            stream.seek(size, io.SEEK_CUR)
    return content


KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types by their names in the header."""

LONGEST = 100_000_000
"""Bytes of the longest header that the format allows."""


def is_safetensors(path: Path) -> bool:
    """Test whether a file is of safetensors, by its content and name."""
    with path.open("rb") as stream:
        start = stream.read(9)
    of_torch = start.startswith((b"PK", b"\x80\x02"))
    named = path.suffix.lower() == ".safetensors" and not of_torch
    return named or (start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file by name.

    Raises:
        CheckpointError: If the file is damaged, or has an unknown type.

    Examples:
        The file has the length of the header, the header, and two float32 numbers.

        >>> import json, pathlib, struct, tempfile, numpy as np
        >>> from influence_ssl_jax.checkpoints.tensors import read_safetensors
        >>> header = json.dumps({"bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        >>> content = struct.pack("<Q", len(header)) + header + np.asarray([1, 2], "<f4").tobytes()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     size = path.write_bytes(content)
        ...     read_safetensors(path)["bias"].numpy().tolist()
        [1.0, 2.0]
    """
    with path.open("rb") as stream:
        size = path.stat().st_size
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(LONGEST, size - 8):
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
            _refuse_overlaps(entries)
            return tensors
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file, or damaged ({error}); copy it again.") from error


def _tensor(path: Path, name: str, entry: dict, start: int, size: int) -> Tensor:
    """Return the array that an entry of the header describes.

    Raises:
        ValueError: If its bytes lie outside the file, or are not as many as its shape needs.
    """
    kind, shape = KINDS.get(entry["dtype"]), tuple(entry["shape"])
    if kind is None:
        raise CheckpointError(f"{path}: {name} has the type {entry['dtype']}; known are {', '.join(KINDS)}.")
    first, last = entry["data_offsets"]
    if not all(isinstance(number, int) for number in (first, last, *shape)) or min(shape, default=0) < 0:
        raise ValueError(f"{name} has a shape or offsets that are not whole numbers")
    count = math.prod(shape)
    if not 0 <= first <= last <= size - start or last - first != count * DTYPES[kind].itemsize:
        raise ValueError(f"{name} lies outside the file, or has another size than its shape {list(shape)}")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Tensor(shape, kind, strides, 0, count, _reader(path, start + first, last - first))


def _refuse_overlaps(entries: dict[str, dict]) -> None:
    """Refuse a header with two arrays in the same bytes.

    Raises:
        ValueError: If there are two.
    """
    places = sorted((entry["data_offsets"], name) for name, entry in entries.items())
    for ((_, end), name), ((start, last), other) in itertools.pairwise(places):
        if start < end and start < last:
            raise ValueError(f"{name} and {other} are in the same bytes")


def _reader(path: Path, start: int, length: int) -> Callable[[], bytes]:
    """Return a function that reads `length` bytes from `start`."""

    def read() -> bytes:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return read
