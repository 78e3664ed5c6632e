"""Data sets in memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.source import Example, OpenSource, Source, digest, repeated_ids
from influence_ssl_jax.errors import DataError, printable


class InMemory(OpenSource):
    """Images that are already decoded."""

    def __init__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        labels: np.ndarray | None = None,
        ids: Sequence[str] | None = None,
        attributes: pa.Table | None = None,
        truth: Sequence[str] = (),
    ) -> None:
        self._images = images
        self._labels = labels
        self._ids = tuple(map(printable, ids)) if ids is not None else None
        self._attributes, self._truth = attributes, tuple(truth)
        for name, given in (("labels", labels), ("ids", ids), ("attributes", attributes)):
            if given is not None and len(given) != len(images):
                raise DataError(
                    f"{name} must have one entry per image: got {len(given)} {name} for {len(images)} images."
                )

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Example:
        """Example `index`; nothing is copied."""
        name = self._ids[index] if self._ids is not None else str(index)
        label = int(self._labels[index]) if self._labels is not None else -1
        return Example(index, name, np.asarray(self._images[index]), label if label >= 0 else None)

    def ids(self) -> Sequence[str]:
        """Return the ids that were given, or numbers."""
        return self._ids if self._ids is not None else [str(index) for index in range(len(self))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the classes that were given, −1 where there are none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.astype(np.int32)

    def truth(self) -> tuple[str, ...]:
        """Name the attributes that tell what was planted."""
        return self._truth

    def attributes(self) -> pa.Table | None:
        """The columns that were given."""
        return self._attributes

    def fingerprint(self) -> str:
        """A hash of everything, pixels included: arrays have no name to be known by."""
        parts: list[str | bytes] = ["arrays", *(self._ids or ())]
        for image in self._images:
            parts += [f"{image.dtype} {image.shape}", np.ascontiguousarray(image).tobytes()]
        labels = [] if self._labels is None else [np.asarray(self._labels, np.int64).tobytes()]
        known = "" if self._attributes is None else str(self._attributes.to_pydict())
        return digest(*parts, *labels, known)

    def notes(self) -> tuple[str, ...]:
        """Ids that occur more than once."""
        return repeated_ids(self._ids or ())


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Arrays in memory, for use from Python; two descriptions are equal only where they are the same object.

    Attributes:
        images: One array [count, height, width] or [count, height, width, channels], or a sequence of images of any
            sizes; 8- or 16-bit integers, or floating point in [0, 1].
        labels: A class 0, 1, … per image, −1 where it is unknown.
        ids: A name per image; its number where None.
        columns: What else is known of the images: name and one value per image.
    """

    images: Sequence[np.ndarray] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    ids: Sequence[str] | None = None
    columns: dict[str, Sequence[object] | np.ndarray] | None = None

    def _open(self) -> InMemory:
        """The same arrays as examples.

        Raises:
            DataError: Labels, ids or columns are not one per image, or a label is no class.
        """
        labels = None if self.labels is None else np.asarray(self.labels)
        if labels is not None and not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels are whole numbers, got dtype {labels.dtype}; number the classes 0, 1, ….")
        if labels is not None and labels.size and (labels.min() < -1 or labels.max() >= 2**31):
            raise DataError(
                f"labels are −1 (unknown) or classes from 0 to {2**31 - 1}, got {labels.min()} to {labels.max()}; "
                "number the classes 0, 1, …, as np.unique(labels, return_inverse=True) does."
            )
        for name, values in (self.columns or {}).items():
            if len(values) != len(self.images):
                raise DataError(f"column {name!r} has {len(values)} values for {len(self.images)} images.")
        table = None if self.columns is None else pa.table({k: pa.array(list(v)) for k, v in self.columns.items()})
        return InMemory(self.images, labels, self.ids, table)
