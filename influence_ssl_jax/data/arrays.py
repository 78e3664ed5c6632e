"""Define data sets of arrays in memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.examples import Example, OpenSource, digest, repeated_ids
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.errors import DataError, printable


class InMemory(OpenSource):
    """An opened data set of images that are decoded.

    Args:
        images: Pixels [height, width] or [height, width, channels] of each image.
        labels: A class for each image, −1 if it is unknown.
        ids: A name for each image, converted to text; None takes its number.
        attributes: One row for each image.
        truth: Names of the attributes that say what was planted.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        labels: np.ndarray | None = None,
        ids: Sequence[object] | np.ndarray | None = None,
        attributes: pa.Table | None = None,
        truth: Sequence[str] = (),
    ) -> None:
        self._images = images
        self._labels = labels
        self._ids = tuple(printable(str(name)) for name in ids) if ids is not None else None
        self._attributes, self._truth = attributes, tuple(truth)
        for name, given in (("labels", labels), ("ids", ids), ("attributes", attributes)):
            if given is not None and len(given) != len(images):
                raise DataError(
                    f"{name} must have one entry per image: got {len(given)} {name} for {len(images)} images."
                )

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        """Return example `index`; its pixels are not copied."""
        name = self._ids[index] if self._ids is not None else str(index)
        label = int(self._labels[index]) if self._labels is not None else -1
        return Example(index, name, np.asarray(self._images[index]), label if label >= 0 else None)

    def ids(self) -> Sequence[str]:
        """Return the given ids, or numbers."""
        return self._ids if self._ids is not None else [str(index) for index in range(len(self))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the given classes, −1 if there are none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.astype(np.int32)

    def truth(self) -> tuple[str, ...]:
        """Return the names of the attributes that say what was planted."""
        return self._truth

    def attributes(self) -> pa.Table | None:
        """Return the given attributes."""
        return self._attributes

    def fingerprint(self) -> str:
        """Return a hash of all arrays, pixels included."""
        parts: list[str | bytes] = ["arrays", *(self._ids or ())]
        for image in self._images:
            parts += [f"{image.dtype} {image.shape}", np.ascontiguousarray(image).tobytes()]
        labels = [] if self._labels is None else [np.asarray(self._labels, np.int64).tobytes()]
        known = "" if self._attributes is None else str(self._attributes.to_pydict())
        return digest(*parts, *labels, known)

    def members(self) -> str:
        """Return a hash of number, ids, classes and columns of the images."""
        labels = "" if self._labels is None else np.asarray(self._labels, np.int64).tobytes()
        known = "" if self._attributes is None else str(self._attributes.to_pydict())
        return digest("arrays", str(len(self)), *(self._ids or ()), labels, known)

    def notes(self) -> tuple[str, ...]:
        """Return a note on ids that occur more than once."""
        return repeated_ids(self._ids or ())


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Arrays in memory, for use from Python.

    Two of these descriptions are equal only if they are the same object.

    Attributes:
        images: One array [count, height, width] or [count, height, width, channels], or a sequence of images of any
            sizes; 8- or 16-bit integers, or floating point in [0, 1].
        labels: A class 0, 1, … for each image, −1 if it is unknown.
        ids: A name for each image, converted to text; None takes its number.
        columns: Further attributes by name, with one value for each image.

    Examples:
        >>> import numpy as np
        >>> from influence_ssl_jax import Arrays
        >>> opened = Arrays(np.zeros((2, 8, 8), np.uint8), labels=[1, 0], ids=["a", "b"]).open()
        >>> len(opened), opened.ids()[1], opened.read(1).label
        (2, 'b', 0)
    """

    images: Sequence[np.ndarray] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    ids: Sequence[object] | np.ndarray | None = None
    columns: dict[str, Sequence[object] | np.ndarray] | None = None

    def _open(self) -> InMemory:
        """Open the arrays as examples.

        Raises:
            DataError: If labels, ids or columns do not have one value per image, or a label is not a class.
        """
        labels = None if self.labels is None else np.asarray(self.labels)
        if labels is not None and not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels must be whole numbers, got dtype {labels.dtype}; number the classes 0, 1, ….")
        if labels is not None and labels.size and (labels.min() < -1 or labels.max() >= 2**31):
            raise DataError(
                f"labels must be −1 (unknown) or classes 0 to {2**31 - 1}, got {labels.min()} to {labels.max()}; "
                "number the classes 0, 1, …, as np.unique(labels, return_inverse=True) does."
            )
        for name, values in (self.columns or {}).items():
            if len(values) != len(self.images):
                raise DataError(f"column {name!r} has {len(values)} values for {len(self.images)} images.")
        table = pa.table({name: _column(name, values) for name, values in (self.columns or {}).items()})
        return InMemory(self.images, labels, self.ids, None if self.columns is None else table)


def _column(name: str, values: Sequence[object] | np.ndarray) -> pa.Array:
    """Return the values of an attribute as a column.

    Raises:
        DataError: If they have no common type.
    """
    try:
        return pa.array(list(values))
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"column {name!r} must hold numbers, texts or dates, of one kind: {error}. Convert or remove it."
        ) from error
