"""Read files of safetensors: a JSON header of names, types, shapes and places, then plain bytes."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.tensor import DTYPES, Tensor

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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file by name.

    Raises:
        CheckpointError: If the file is damaged, or has an unknown type.

    Example:
        The file has the length of the header, the header, and two float32 numbers.

        >>> import json, pathlib, struct, tempfile, numpy as np
        >>> from influence_ssl_jax.checkpoints.safetensors_file import read_safetensors
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
            return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file, or damaged ({error}); copy it again.") from error


def _tensor(path: Path, name: str, entry: dict, start: int, size: int) -> Tensor:
    """Return the array that an entry of the header describes.

    Raises:
        ValueError: If its bytes lie outside the file, or are not as many as its shape needs.
    """
    kind, shape = KINDS.get(entry["dtype"]), tuple(int(length) for length in entry["shape"])
    if kind is None:
        raise CheckpointError(f"{path}: {name} has the type {entry['dtype']}; known are {', '.join(KINDS)}.")
    first, last = entry["data_offsets"]
    count = math.prod(shape)
    if not 0 <= first <= last <= size - start or last - first != count * DTYPES[kind].itemsize:
        raise ValueError(f"{name} lies outside the file, or has another size than its shape {list(shape)}")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Tensor(shape, kind, strides, 0, count, _reader(path, start + first, last - first))


def _reader(path: Path, start: int, length: int) -> Callable[[], bytes]:
    """Return a function that reads `length` bytes from `start`."""

    def read() -> bytes:
        with path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return read
