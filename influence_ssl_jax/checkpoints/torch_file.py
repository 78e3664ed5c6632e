"""Read weights that torch saved (`.pth`, `.pt`, `.ckpt`) without executing them.

A file of torch is a pickle: a program for a stack machine, which can call any function of any module. Here the program
is *interpreted as data*: the functions that it names are recorded by name, and never imported or called. Dicts, lists,
numbers, texts and arrays are returned as such; everything else becomes `Foreign`, a name.
"""

import dataclasses
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.tensor import DTYPES, Tensor

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
    """An object that the pickle would create by importing or calling `name`; it is not created.

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
            f"{path} is not a file of torch, or damaged ({type(error).__name__}: {error})."
        ) from error


def interpret(
    stream: io.BytesIO | io.BufferedReader, stored: Callable[[Storage], tuple[int, Callable[[], bytes]]]
) -> Any:
    """Interpret one pickle as data, and move the stream to the end of the pickle.

    Args:
        stream: A stream at the start of the pickle.
        stored: From a storage to the number of its values and a function that reads its bytes.

    Raises:
        CheckpointError: If the pickle has an instruction that no file of weights needs.
        ValueError: If the pickle has no end.

    Example:
        The pickle would call `print`; its interpretation records the name and calls nothing.

        >>> import io, pickle
        >>> from influence_ssl_jax.checkpoints.torch_file import interpret
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
        """Remove or repeat the last value, or remove all values above the mark."""
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
        """Put the last values into the list or dict below them; a `Foreign` object takes none."""
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
        """Record the result of a call as `Foreign`; create dicts, arrays and sizes."""
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
    """Read the layout since torch 1.6: an uncompressed zip with `data.pkl` and one member for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
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
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)

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
