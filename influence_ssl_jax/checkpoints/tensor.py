"""Define an array in a file of weights, whose values are read on demand."""

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
    """An array in a file.

    Attributes:
        shape: Its shape.
        dtype: Name of its type, one of `DTYPES`.
        strides: Number of elements between neighbours on each axis.
        offset: Number of elements before the first one.
        stored: Number of elements in the stored bytes.
        read: Returns the stored bytes.

    Example:
        >>> import numpy as np
        >>> from influence_ssl_jax.checkpoints.tensor import Tensor
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
