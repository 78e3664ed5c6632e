"""An array inside a file of weights: its shape is known at once, its values are read when they are asked for."""

import dataclasses
from collections.abc import Callable

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
    """An array of a file.

    Attributes:
        shape: Its shape.
        dtype: The name of its type, one of `DTYPES`.
        strides: Elements between neighbours on each axis.
        offset: Elements before the first one.
        stored: Elements that the stored bytes hold.
        read: Returns the stored bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    offset: int
    stored: int
    read: Callable[[], bytes]

    @classmethod
    def of(cls, array: np.ndarray) -> "Tensor":
        """Return an array that is in memory as one of a file."""
        flat = np.ascontiguousarray(array)
        strides = tuple(stride // flat.itemsize for stride in flat.strides)
        return cls(flat.shape, flat.dtype.name, strides, 0, flat.size, flat.tobytes)

    def numpy(self) -> np.ndarray:
        """Read the values.

        Raises:
            CheckpointError: The stored bytes are fewer than the shape asks for.
        """
        kind = DTYPES[self.dtype]
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        count = int(np.prod(self.shape))
        inside = min((self.offset, *self.strides), default=0) >= 0 and last < self.stored and count <= self.stored
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
