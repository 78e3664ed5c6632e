"""Define data sets of tensorflow-datasets, which are read without TensorFlow."""

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.data.attributes import Classes, number_classes
from influence_ssl_jax.data.encoded import UndecodableImage, decode
from influence_ssl_jax.data.examples import (
    Example,
    OpenSource,
    Skipped,
    UnreadableExample,
    content_digest,
    digest,
    read_or_skip,
)
from influence_ssl_jax.data.source import Source, absolute_path
from influence_ssl_jax.errors import DataError, printable, require


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to one dict with paths `outer/inner`.

    Examples:
        >>> from influence_ssl_jax.data.tfds import flatten
        >>> flatten({"image": 1, "eyes": {"left": 2}})
        {'image': 1, 'eyes/left': 2}
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, dict) or type(value).__name__ == "FeaturesDict"
        leaves.update(flatten(value, f"{prefix}{name}/") if is_group else {f"{prefix}{name}": value})
    return leaves


def nest(path: str, leaf: Any) -> dict[str, Any]:
    """Return nested dicts with `leaf` at the path `outer/inner`.

    Examples:
        >>> from influence_ssl_jax.data.tfds import nest
        >>> nest("eyes/left", 2)
        {'eyes': {'left': 2}}
    """
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def require_feature(what: str, name: str, features: dict[str, Any]) -> str:
    """Return `name` if there is such a feature.

    Raises:
        DataError: If there is none.
    """
    if name not in features:
        raise DataError(f"There is no {what} feature {name!r}; the data set has {', '.join(features)}.")
    return name


def image_feature(features: dict[str, Any], wanted: str | None) -> str:
    """Return the image feature: the wanted one, `image`, or the only one.

    Raises:
        DataError: If there is no such feature, there are several, or it is not an image of 8 or 16 bits.
    """
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    name = (
        require_feature("image", wanted, features)
        if wanted
        else "image"
        if "image" in images
        else next(iter(images), None)
    )
    if name is None or (name != "image" and wanted is None and len(images) > 1):
        described = (
            f"several: {', '.join(images)}; name one with image=…" if images else "none, so it is not an image data set"
        )
        raise DataError(f"A data set needs one image feature, this one has {described}.")
    if name not in images or np.issubdtype(features[name].np_dtype, np.floating):
        raise DataError(
            f"The feature {name!r} is {features[name]}, not an image of 8 or 16 bits; name another one with image=…."
        )
    return name


def first_class(features: dict[str, Any]) -> str | None:
    """Return the class feature, or None if there is none.

    It is `label`, or else the first class label.
    """
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    return "label" if "label" in classes else next(iter(classes), None)


def is_scalar(feature: Any) -> bool:
    """Test whether a feature is one number or truth value."""
    return feature.shape == () and any(np.issubdtype(feature.np_dtype, kind) for kind in (np.number, np.bool_))


def is_text(feature: Any) -> bool:
    """Test whether a feature is one text."""
    return feature.shape == () and type(feature).__name__ == "Text"


def class_values(values: list[Any]) -> pa.ChunkedArray:
    """Return the values of a feature as a column; bytes become text."""
    plain = [text(value) if isinstance(value, bytes) else value for value in values]
    return pa.chunked_array([pa.array([value.item() if isinstance(value, np.generic) else value for value in plain])])


def column(feature: Any, values: list[Any]) -> pa.Array:
    """Return one value per example, or null; classes by name."""
    names = dict(enumerate(getattr(feature, "names", None) or ()))
    if any(name != str(number) for number, name in names.items()):  # classes without names have their number as name
        return pa.array([None if value is None else names.get(int(value)) for value in values], pa.string())
    return pa.array(values, pa.from_numpy_dtype(feature.np_dtype))


def text(value: Any) -> str:
    """Return a name as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


_NAMES = ("id", "image_id", "file_name", "filename", "image/filename", "image/id")
_CHUNK = 512
_DAMAGE = (ValueError, KeyError, IndexError, RuntimeError)  # errors that readers and parsers raise for a damaged record


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """Any image data set of tensorflow-datasets, prepared in a random-access format.

    The index of an example is its position in the prepared files (tensorflow-datasets shuffles when it prepares). Its id
    is that of the data set, or else split and index.

    Attributes:
        name: The data set, with an optional configuration and version: `cifar10`, `cifar10:3.0.2`,
            `cifar10_corrupted/fog_1`.
        split: The split, with an optional slice: `train`, `train[:1000]`, `train+test`.
        data_dir: The folder of the prepared files; None takes the default of tensorflow-datasets.
        image: The image feature; None takes `image` or the only image feature.
        label: The feature that is the class; None takes `label` or the first class label. The values of other features,
            such as a text or a year, are numbered in sorted order.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> images = isj.Tfds("cifar10", split="train[:1000]")  # isj.score(encoder, images)
    """

    name: str = "cifar10"
    split: str = "train"
    data_dir: str | None = None
    image: str | None = None
    label: str | None = None

    def absolute(self) -> "Source":
        """Return the same data set with an absolute path of its folder."""
        return dataclasses.replace(super().absolute(), data_dir=absolute_path(self.data_dir))

    def _open(self) -> "OpenTfds":
        """Find the prepared files and the features.

        Raises:
            DataError: If the data set, the split or a feature is unknown, or the data set is not prepared; the message
                says what to run.
        """
        builder = self._builder()
        if not builder.info.splits or not any(
            _is_random_access(each) for each in builder.info.available_file_formats()
        ):
            raise DataError(self._how_to_prepare(str(builder.data_dir)))
        features = flatten(builder.info.features)
        image = image_feature(features, self.image)
        label = first_class(features) if self.label is None else require_feature("label", self.label, features)
        if label is not None and not is_scalar(features[label]) and not is_text(features[label]):
            raise DataError(f"The label feature {label!r} is {features[label]}; name one with one value per example.")
        if self._count(builder.info) < 1:
            splits = ", ".join(
                f"{name} ({split.num_examples:,} examples)" for name, split in builder.info.splits.items()
            )
            raise DataError(f"The split {self.split!r} of {self.name!r} has no examples; choose from {splits}.")
        gone = [name for name, _ in _files(builder.info, self.split) if not Path(name).is_file()]
        if gone:
            raise DataError(
                f"The prepared files of {self.name!r} are incomplete: {len(gone)} are missing, the first is {gone[0]}. "
                "Prepare the data set again with `tfds build`."
            )
        return OpenTfds(builder, self.split, features, image, label)

    def _count(self, info: Any) -> int:
        """Return the number of examples of the split.

        A slice beyond the end has none.

        Raises:
            DataError: If there is no such split.
        """
        from tensorflow_datasets.core import ReadInstruction

        try:
            parts = ReadInstruction.from_spec(self.split).to_absolute(info.splits)
            info.splits[self.split]  # some wrong slices raise only here
            ends = [info.splits[each.splitname].num_examples if each.to is None else each.to for each in parts]
            return sum(max(0, end - (each.from_ or 0)) for each, end in zip(parts, ends, strict=True))
        except (ValueError, KeyError, AssertionError) as error:
            splits = ", ".join(info.splits)
            raise DataError(f"{self.name!r} has the splits {splits}, got {self.split!r} ({error}).") from error

    def _builder(self) -> Any:
        """Return the builder of the data set.

        Raises:
            DataError: If tensorflow-datasets has no such data set, configuration or version.
        """
        require("tfds")
        import tensorflow_datasets as tfds  # slow to import
        from tensorflow_datasets.core.registered import DatasetNotFoundError

        try:
            return tfds.builder(self.name, data_dir=self.data_dir)
        except DatasetNotFoundError:
            listed = tfds.list_builders(with_community_datasets=False)
            near = difflib.get_close_matches(self.name, listed, n=3, cutoff=0.5)
            hint = f"similar names are {', '.join(near)}." if near else "tfds.list_builders() lists all."
            raise DataError(f"tensorflow-datasets has no data set {self.name!r}; {hint}") from None
        except (ValueError, AssertionError) as error:  # a malformed name, or an unknown configuration or version
            raise DataError(f"tensorflow-datasets cannot open {self.name!r}: {error}") from error

    def _how_to_prepare(self, folder: str) -> str:
        """Write the error message with the commands that prepare the data set."""
        where = f" --data_dir={self.data_dir}" if self.data_dir else ""
        stands = "has it in another format" if any(Path(folder).glob("*.json")) else "does not have it"
        return (
            f"{self.name!r} is not prepared for random access: {folder} {stands}. Prepare it once; only this step needs "
            "TensorFlow:\n"
            "    pip install tensorflow-cpu\n"
            f"    tfds build {self.name} --file_format=array_record{where}"
        )


class _Through(NamedTuple):
    """The ids and scalar features of all examples; None if damaged."""

    ids: list[str]
    columns: dict[str, list[Any]]


class OpenTfds(OpenSource):
    """An opened split of a data set of tensorflow-datasets."""

    def __init__(self, builder: Any, split: str, features: dict[str, Any], image: str, label: str | None) -> None:
        import tensorflow_datasets as tfds

        self._builder, self._split, self._features = builder, split, features
        self._image, self._label = image, label
        undecoded = nest(image, tfds.decode.SkipDecoding())  # `decode` of this package says what is wrong with an image
        self._records = builder.as_data_source(split=split, decoders=undecoded)
        self._name = next((name for name in _NAMES if name in features and not features[name].shape), None)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Example:
        """Read and decode a record."""
        try:
            record = self._records[index]
        except _DAMAGE as error:
            raise UnreadableExample(index, f"{self._split}/{index}", f"the record is damaged: {error}") from error
        return self._example(index, record)

    def read_many(self, indices: Sequence[int]) -> Iterator[Example | Skipped]:
        """Read records together, or one by one if one is damaged.

        Reading together is much faster.
        """
        try:
            records = self._records.__getitems__(list(indices)) if len(indices) else []
        except _DAMAGE:
            return (read_or_skip(self.read, index) for index in indices)
        return (read_or_skip(self._example, *pair) for pair in zip(indices, records, strict=True))

    def _example(self, index: int, nested_record: dict[str, Any]) -> Example:
        """Decode a record."""
        record = flatten(nested_record)
        name = self._id(index, record)
        try:
            image = decode(record[self._image])
        except UndecodableImage as error:
            raise UnreadableExample(index, name, str(error)) from error
        label = -1 if self._label is None else self._number_class(index, record[self._label])
        return Example(index, name, image, label if label >= 0 else None, content_digest(record[self._image]))

    def content(self, index: int) -> bytes:
        """Return the digest of the encoded image, without decoding."""
        try:
            return content_digest(flatten(self._records[index])[self._image])
        except _DAMAGE as error:
            raise UnreadableExample(index, f"{self._split}/{index}", f"the record is damaged: {error}") from error

    def class_names(self) -> tuple[str, ...] | None:
        """Return a numbered label's values, in the order of their numbers."""
        return None if self._label is None or self._is_class else self._classes.values

    def _id(self, index: int, record: dict[str, Any]) -> str:
        name = text(record[self._name]) if self._name and record else f"{self._split}/{index}"
        return printable(name)

    def _number_class(self, index: int, value: Any) -> int:
        """Return an example's class: its number, or its value's position."""
        return int(value) if self._is_class else int(self._classes.labels[index])

    @property
    def _is_class(self) -> bool:
        return bool(self._label) and type(self._features[self._label]).__name__ == "ClassLabel"

    @functools.cached_property
    def _classes(self) -> Classes:
        """Number the values of a label that is not a class label."""
        name = str(self._label)
        return number_classes(class_values(self._through.columns[name]), f"The label feature {name!r}")

    @functools.cached_property
    def _through(self) -> "_Through":
        """Ids and scalar features, read in one pass without decoding images."""
        wanted = [name for name, feature in self._features.items() if is_scalar(feature) and name != self._name]
        wanted += [self._label] if self._label is not None and self._label not in wanted else []
        columns: dict[str, list[Any]] = {name: [] for name in wanted}
        ids: list[str] = []
        for start in range(0, len(self), _CHUNK):
            for record in self._read_undecoded(range(start, min(start + _CHUNK, len(self)))):
                ids.append(self._id(len(ids), record))
                for name in wanted:
                    columns[name].append(record.get(name))
        return _Through(ids, columns)

    def _read_undecoded(self, indices: range) -> list[dict[str, Any]]:
        """Return records with undecoded images, empty ones for damaged records."""
        try:
            return [flatten(record) for record in self._records.__getitems__(list(indices))]
        except _DAMAGE:
            if len(indices) == 1:
                return [{}]
            half = len(indices) // 2
            return self._read_undecoded(indices[:half]) + self._read_undecoded(indices[half:])

    def ids(self) -> list[str]:
        """Return the data set's ids, or else split and index.

        Ids of the data set need one pass over the records.
        """
        return self._through.ids if self._name else [f"{self._split}/{index}" for index in range(len(self))]

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return every example's class, −1 if it has none or is damaged."""
        if self._label is None:
            return np.full(len(self), -1, np.int32)
        if not self._is_class:
            return self._classes.labels
        values = self._through.columns[self._label]
        return np.array([-1 if value is None else int(value) for value in values], np.int32)

    def attributes(self) -> pa.Table | None:
        """Return classes by name and all other scalars, in one pass."""
        columns = self._through.columns
        scalar = {name: values for name, values in columns.items() if is_scalar(self._features[name])}
        if not scalar:
            return None
        return pa.table({name: column(self._features[name], values) for name, values in scalar.items()})

    def fingerprint(self) -> str:
        """Return a hash of data set, configuration, version, split, features and files.

        Names and sizes of the files are part of it; their content is not: if a record is replaced by one of the same size,
        the hash stays.
        """
        sizes = (str(Path(name).stat().st_size) for name, _ in _files(self._builder.info, self._split))
        return digest(self.members(), *sizes)

    def members(self) -> str:
        """Return a hash of which examples there are.

        It covers data set, configuration, version, split, features and names of the files.
        """
        info = self._builder.info
        files = [f"{Path(name).name} {part}" for name, part in _files(info, self._split)]
        return digest("tfds", info.full_name, self._image, str(self._label), *files)

    def overlaps(self, other: "OpenTfds") -> bool:
        """Test whether a record belongs to both splits."""
        mine, theirs = self._spans(), other._spans()
        return any(
            name == file and start < end and begin < stop for name, start, stop in mine for file, begin, end in theirs
        )

    def _spans(self) -> list[tuple[str, int, int]]:
        """Return the files, with the numbers of their first and last records.

        The last one is not part of the split.
        """
        parts = self._builder.info.splits[self._split].file_instructions
        return [
            (str(each.filename), each.skip, each.examples_in_shard if each.take < 0 else each.skip + each.take)
            for each in parts
        ]


def _files(info: Any, split: str) -> list[tuple[str, str]]:
    """Return a split's files, and which part of each is read."""
    return [(str(each.filename), f"{each.skip}+{each.take}") for each in info.splits[split].file_instructions]


def _is_random_access(file_format: Any) -> bool:
    """Test whether a file format's records can be read in any order."""
    from tensorflow_datasets.core import file_adapters

    return file_format in file_adapters.FileFormat.with_random_access()
