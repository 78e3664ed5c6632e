"""Data sets of tensorflow-datasets, read without TensorFlow."""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influence_ssl_jax.data.source import (
    Example,
    OpenSource,
    Skipped,
    Source,
    UnreadableExample,
    attempt,
    content_digest,
    digest,
)
from influence_ssl_jax.data.transform import UndecodableImage, decode
from influence_ssl_jax.errors import DataError


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with paths `outer/inner`."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, dict) or type(value).__name__ == "FeaturesDict"
        leaves.update(flat(value, f"{prefix}{name}/") if is_group else {f"{prefix}{name}": value})
    return leaves


def nested(path: str, leaf: Any) -> dict[str, Any]:
    """A path `outer/inner` as nested dicts around `leaf`."""
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def known(what: str, name: str, features: dict[str, Any]) -> str:
    """`name`, where there is such a feature."""
    if name not in features:
        raise DataError(f"There is no {what} feature {name!r}; the data set has {', '.join(features)}.")
    return name


def image_feature(features: dict[str, Any], wanted: str | None) -> str:
    """The image feature: the one that is wanted, or that is called `image`, or the only one."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    name = known("image", wanted, features) if wanted else "image" if "image" in images else next(iter(images), None)
    if name is None or (name != "image" and wanted is None and len(images) > 1):
        found = f"several: {', '.join(images)}; name one with image=…" if images else "none, so it is no image data set"
        raise DataError(f"One image feature is needed, found {found}.")
    if name not in images or np.issubdtype(features[name].np_dtype, np.floating):
        raise DataError(
            f"Feature {name!r} is no picture of 8 or 16 bits, but {features[name]}; name another with image=…."
        )
    return name


def first_class(features: dict[str, Any]) -> str | None:
    """The class feature: the one that is called `label`, or the first, or None."""
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    return "label" if "label" in classes else next(iter(classes), None)


def is_scalar(feature: Any) -> bool:
    """Whether a feature is one number or truth value."""
    return feature.shape == () and any(np.issubdtype(feature.np_dtype, kind) for kind in (np.number, np.bool_))


def column(feature: Any, values: list[Any]) -> pa.Array:
    """One value per example, None where there is none; classes by name."""
    names = dict(enumerate(getattr(feature, "names", None) or ()))
    if any(name != str(number) for number, name in names.items()):  # classes without names are named by their number
        return pa.array([None if value is None else names.get(int(value)) for value in values], pa.string())
    return pa.array(values, pa.from_numpy_dtype(feature.np_dtype))


def text(value: Any) -> str:
    """A name as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


_NAMES = ("id", "image_id", "file_name", "filename", "image/filename", "image/id")
_CHUNK = 512
_DAMAGE = (ValueError, KeyError, IndexError, RuntimeError)  # what a damaged record makes its reader and parser raise


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """Any image data set of tensorflow-datasets that was prepared in a random-access format.

    The index of an example is its place in the prepared files (tensorflow-datasets shuffles when it prepares); its id
    is the data set's own where it has one.

    Attributes:
        name: The data set, with configuration and version where wanted: `cifar10`, `cifar10:3.0.2`,
            `cifar10_corrupted/fog_1`.
        split: The split, with a slice where wanted: `train`, `train[:1000]`, `train+test`.
        data_dir: Where the prepared files are; tensorflow-datasets' own default where None.
        image: The image feature; found where None.
        label: The feature that is the class; found where None.
    """

    name: str = "cifar10"
    split: str = "train"
    data_dir: str | None = None
    image: str | None = None
    label: str | None = None

    def open(self) -> "OpenTfds":
        """Find the prepared files and the features.

        Raises:
            DataError: The data set, the split or a feature is unknown, or it is not prepared; the message says what to
                run.
        """
        builder = self._builder()
        if not builder.info.splits or not any(
            _is_random_access(each) for each in builder.info.available_file_formats()
        ):
            raise DataError(self._how_to_prepare(str(builder.data_dir)))
        features = flat(builder.info.features)
        image = image_feature(features, self.image)
        label = first_class(features) if self.label is None else known("label", self.label, features)
        try:
            builder.info.splits[self.split]
        except (ValueError, KeyError) as error:
            splits = ", ".join(builder.info.splits)
            raise DataError(f"{self.name!r} has the splits {splits}, got {self.split!r} ({error}).") from error
        gone = [name for name, _ in _files(builder.info, self.split) if not Path(name).is_file()]
        if gone:
            raise DataError(
                f"The prepared files of {self.name!r} are incomplete: {len(gone)} are missing, the first {gone[0]}."
            )
        return OpenTfds(builder, self.split, features, image, label)

    def absolute(self) -> "Tfds":
        """The same data set, its folder by an absolute path."""
        folder = None if self.data_dir is None else str(Path(self.data_dir).expanduser().absolute())
        return dataclasses.replace(self, data_dir=folder)

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # slow to import
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        try:
            return tfds.builder(self.name, data_dir=self.data_dir)
        except DatasetNotFoundError:
            listed = tfds.list_builders(with_community_datasets=False)
            near = difflib.get_close_matches(self.name, listed, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "tfds.list_builders() lists them."
            raise DataError(f"tensorflow-datasets has no data set {self.name!r}; {hint}") from None
        except (
            ValueError,
            AssertionError,
        ) as error:  # a name that cannot be parsed, a configuration or version that is not
            raise DataError(f"tensorflow-datasets cannot open {self.name!r}: {error}") from error

    def _how_to_prepare(self, folder: str) -> str:
        where = f" --data_dir={self.data_dir}" if self.data_dir else ""
        stands = "holds it in another format" if any(Path(folder).glob("*.json")) else "does not hold it"
        return (
            f"{self.name!r} is not prepared for random access: {folder} {stands}. Prepare it once, with TensorFlow "
            "installed (reading needs none):\n"
            "    pip install tensorflow-cpu\n"
            f"    tfds build {self.name} --file_format=array_record{where}"
        )


class OpenTfds(OpenSource):
    """A split whose image feature is known."""

    def __init__(self, builder: Any, split: str, features: dict[str, Any], image: str, label: str | None) -> None:
        import tensorflow_datasets as tfds

        self._builder, self._split, self._features = builder, split, features
        self._image, self._label = image, label
        undecoded = nested(image, tfds.decode.SkipDecoding())  # the project's own decoder names what is wrong
        self._records = builder.as_data_source(split=split, decoders=undecoded)
        self._name = next((name for name in _NAMES if name in features and not features[name].shape), None)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Example:
        """Read and decode one record."""
        try:
            record = self._records[index]
        except _DAMAGE as error:
            raise UnreadableExample(index, f"{self._split}/{index}", f"the record is damaged: {error}") from error
        return self._example(index, record)

    def read_many(self, indices: Sequence[int]) -> list[Example | Skipped]:
        """Fetched together, which costs a fraction of one by one; one by one where a record is damaged."""
        try:
            records = self._records.__getitems__(list(indices))
        except _DAMAGE:
            return [attempt(self.read, index) for index in indices]
        return [attempt(self._example, *pair) for pair in zip(indices, records, strict=True)]

    def _example(self, index: int, nested_record: dict[str, Any]) -> Example:
        record = flat(nested_record)
        name = text(record[self._name]) if self._name else f"{self._split}/{index}"
        try:
            image = decode(record[self._image])
        except UndecodableImage as error:
            raise UnreadableExample(index, name, str(error)) from error
        label = int(record[self._label]) if self._label else None
        return Example(index, name, image, label, content_digest(record[self._image]))

    def content(self, index: int) -> bytes:
        """The digest of the encoded image; nothing is decoded."""
        try:
            return content_digest(flat(self._records[index])[self._image])
        except _DAMAGE as error:
            raise UnreadableExample(index, f"{self._split}/{index}", f"the record is damaged: {error}") from error

    @functools.cached_property
    def _columns(self) -> dict[str, list[Any]]:
        kept = [name for name, feature in self._features.items() if is_scalar(feature) and name != self._name]
        columns: dict[str, list[Any]] = {name: [] for name in kept}
        for start in range(0, len(self) if kept else 0, _CHUNK):
            for record in self._undecoded(range(start, min(start + _CHUNK, len(self)))):
                for name in kept:
                    columns[name].append(record.get(name))
        return columns

    def _undecoded(self, indices: range) -> list[dict[str, Any]]:
        """Records without their image decoded; an empty one for each that is damaged."""
        try:
            return [flat(record) for record in self._records.__getitems__(list(indices))]
        except _DAMAGE:
            if len(indices) == 1:
                return [{}]
            half = len(indices) // 2
            return self._undecoded(indices[:half]) + self._undecoded(indices[half:])

    def attributes(self) -> pa.Table | None:
        """Classes by name, and every other scalar; one pass over the records, without decoding images."""
        if not self._columns:
            return None
        return pa.table({name: column(self._features[name], values) for name, values in self._columns.items()})

    def fingerprint(self) -> str:
        """Data set, configuration, version, split, and the names, sizes and shares of its files."""
        info = self._builder.info
        files = [f"{Path(name).name} {Path(name).stat().st_size} {part}" for name, part in _files(info, self._split)]
        return digest("tfds", info.full_name, self._image, str(self._label), *files)


def _files(info: Any, split: str) -> list[tuple[str, str]]:
    """The files of a split, and which part of each is read."""
    return [(str(each.filename), f"{each.skip}+{each.take}") for each in info.splits[split].file_instructions]


def _is_random_access(file_format: Any) -> bool:
    from tensorflow_datasets.core import file_adapters

    return file_format in file_adapters.FileFormat.with_random_access()
