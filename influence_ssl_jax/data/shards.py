"""Define data sets of images in tar archives, as WebDataset writes them."""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import parquet

from influence_ssl_jax.data.attributes import Classes, number_classes
from influence_ssl_jax.data.encoded import EXTENSIONS, MAX_BYTES, Encoded, UndecodableImage, unreachable_error
from influence_ssl_jax.data.examples import content_digest, digest, note_names
from influence_ssl_jax.data.listing import StoredFile, find_files
from influence_ssl_jax.data.source import Source, absolute_path
from influence_ssl_jax.errors import DataError, printable

ENDINGS = (".tar",)
FORMAT = 2
"""Version of the format of indices in the cache."""
CLS = "cls"
_TEXTS = ("json", CLS)
_LONGEST_TEXT = 2**20
_SUM = 16
"""Bytes of the digest at the beginning of an index in the cache."""
_SAMPLE = re.compile(r"^((?:.*/)?[^./]+)\.([^/]*)$", re.DOTALL)
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("images", pa.int64()),
        ("json", pa.string()),
        (CLS, pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Shards(Source):
    """Tar archives of samples, as WebDataset writes them.

    Files whose names are equal up to the first dot belong to one sample. A sample has an image (`0001.jpg`, png, webp, …)
    and may have a class (`0001.cls`) and attributes (`0001.json`: numbers, texts and truth values). One pass over each
    archive finds the positions of the images; this index is stored in `$XDG_CACHE_HOME/influence-ssl/shards`
    (`~/.cache/…`), and every example is then read directly. The id of an example is archive/name. If an archive is damaged,
    the samples after the damage are lost, and a note says so.

    Attributes:
        path: An archive, a folder, a pattern, or a range such as `train-{000..146}.tar`; local, or an address that fsspec
            knows.
        image: The ending of the image, such as `input.png`, if samples have several images.
        label: The class: `cls` or an attribute; None takes `cls`, or else the attribute `label`.

    Examples:
        >>> import io, tarfile, tempfile
        >>> from PIL import Image
        >>> import influence_ssl_jax as isj
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file, image = f"{folder}/train-000.tar", io.BytesIO()
        ...     Image.new("RGB", (4, 4)).save(image, "PNG")
        ...     with tarfile.open(file, "w") as archive:
        ...         member = tarfile.TarInfo("0001.png")
        ...         member.size = image.tell()
        ...         archive.addfile(member, io.BytesIO(image.getvalue()))
        ...     len(isj.Shards(file).open())
        1
    """

    path: str
    image: str | None = None
    label: str | None = None

    def absolute(self) -> "Source":
        """Return the same data set with an absolute path."""
        return dataclasses.replace(super().absolute(), path=absolute_path(self.path))

    def _open(self) -> "OpenShards":
        """Find the samples of all archives.

        Raises:
            DataError: If there are no such archives, one cannot be read, no sample has an image, or a sample has several.
        """
        archives = find_files(self.path, ENDINGS)
        indices = [_read_index(archive, self.image) for archive in archives]
        samples = pa.concat_tables(
            [
                table.append_column("archive", pa.array([k] * len(table), pa.int32()))
                for k, (table, _) in enumerate(indices)
            ]
        )
        if not np.any(samples["images"].to_numpy() > 0):
            raise DataError(
                f"No archive of {self.path!r} contains an image ({' '.join(sorted(EXTENSIONS))}). Check the path, and the "
                "ending in --source.image."
            )
        several = np.flatnonzero(samples["images"].to_numpy() > 1)
        if len(several):
            row = samples.slice(int(several[0]), 1).to_pylist()[0]
            raise DataError(
                f"{len(several)} samples have several images, the first is {archives[row['archive']].name}/{row['key']}. "
                "Name the ending of the image to use with --source.image, for example input.png."
            )
        return OpenShards(self, archives, samples, tuple(note for _, notes in indices for note in notes))


class OpenShards(Encoded):
    """An opened data set of archives.

    Its samples are those of one archive after the other.
    """

    def __init__(
        self, settings: Shards, archives: Sequence[StoredFile], samples: pa.Table, notes: tuple[str, ...]
    ) -> None:
        self._settings, self._archives, self._samples = settings, archives, samples
        self._offset, self._size, self._images, self._archive = (
            samples[name].to_numpy() for name in ("offset", "size", "images", "archive")
        )
        keys = samples["key"].to_pylist()
        self._ids = [f"{printable(archives[k].name)}/{key}" for k, key in zip(self._archive, keys, strict=True)]
        self._columns, strange = _columns(samples, self._ids)
        self._labels = self._read_labels()
        self._notes = (*notes, *strange)

    def __len__(self) -> int:
        return len(self._ids)

    def _id(self, index: int) -> str:
        return self._ids[index]

    def _class(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels.labels[index])

    def class_names(self) -> tuple[str, ...] | None:
        """Return the values of the classes, in the order of their numbers."""
        return None if self._labels is None else self._labels.values

    def _stored(self, index: int) -> bytes:
        """Return the encoded image of a sample."""
        if not self._images[index]:
            raise UndecodableImage("the sample has no image")
        size = int(self._size[index])
        if size > MAX_BYTES:
            raise UndecodableImage(f"a file of {size:,} bytes, more than the limit of {MAX_BYTES:,}")
        content = self._archives[self._archive[index]].read(int(self._offset[index]), size)
        if len(content) < size:
            raise UndecodableImage(f"the archive is truncated: {len(content)} of {size} bytes are there")
        return content

    def ids(self) -> Sequence[str]:
        """Return archive and name of every sample."""
        return self._ids

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every sample, −1 if it has none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.labels

    def attributes(self) -> pa.Table | None:
        """Return the classes and the attributes of the JSON files."""
        return self._columns if self._columns.column_names else None

    @functools.cached_property
    def _members(self) -> str:
        known = "" if self._labels is None else digest(*self._labels.values, self._labels.labels.tobytes())
        columns = (str(column.to_pylist()) for column in self._columns.columns)
        return digest("shards", *self._ids, known, str(self._columns.schema), *columns)

    def fingerprint(self) -> str:
        """Return a hash of archives, images, attributes and classes.

        Archives count by name and size, images by name, position and size. The bytes of the images are not part of the
        hash: if an image is replaced by one of the same size, the hash stays.
        """
        files = (f"{archive.name} {archive.size}" for archive in self._archives)
        places = (np.ascontiguousarray(each, "<i8").tobytes() for each in (self._offset, self._size, self._archive))
        return digest(self._members, *files, *places)

    def members(self) -> str:
        """Return a hash of which images there are.

        It covers names of archives and images in order, attributes and classes.
        """
        return self._members

    def notes(self) -> tuple[str, ...]:
        """Return notes on what is damaged or left out."""
        return self._notes

    def _read_labels(self) -> Classes | None:
        """Number the classes; None if there are none.

        Raises:
            DataError: If there is no such attribute, or it has no value.
        """
        named, known = self._settings.label, self._columns.column_names
        if named is None:
            named = next((name for name in (CLS, "label") if name in known), None)
            if named is None:
                return None
        elif named not in known:
            raise DataError(f"There is no attribute {named!r} to use as the class; choose one of {known}.")
        return number_classes(self._columns[named], f"The label {named!r}")


def _read_index(archive: StoredFile, image: str | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Return an archive's samples and notes, from the cache if possible."""
    kept = (
        _cache_folder() / f"{digest(str(FORMAT), archive.path, str(archive.size), archive.version, str(image))}.index"
    )
    cached = _read_kept(kept)
    if cached is not None:
        return cached
    table, notes = _scan(archive, image)
    if archive.version:
        _keep(table.replace_schema_metadata({b"notes": json.dumps(notes).encode()}), kept)
    return table, notes


def _cache_folder() -> Path:
    """Return the folder of the cache of indices."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "influence-ssl" / "shards"


def _read_kept(file: Path) -> tuple[pa.Table, tuple[str, ...]] | None:
    """Return an index of the cache with its notes.

    None if it is absent or damaged.
    """
    try:
        content = file.read_bytes()
        if content_digest(content[_SUM:]) != content[:_SUM]:
            return None
        table = parquet.read_table(pa.BufferReader(content[_SUM:]))
        return table, tuple(json.loads(table.schema.metadata[b"notes"]))
    except OSError:
        return None


def _keep(table: pa.Table, file: Path) -> None:
    """Write an index, after its digest, if the cache can be written."""
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content_digest(content) + content)
        unfinished.replace(file)
    except OSError:  # without the cache, the next run reads the archive again
        with contextlib.suppress(OSError):
            unfinished.unlink()


@dataclasses.dataclass
class _Sample:
    """A sample: its files' positions, and the texts read at once."""

    key: str
    fields: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # ending → offset, size
    texts: dict[str, str] = dataclasses.field(default_factory=dict)


def _scan(archive: StoredFile, image: str | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Find an archive's samples in one pass over its files' headers.

    Raises:
        DataError: If it is compressed, not a tar archive, or cannot be read.
    """
    strange: dict[str, list[str]] = collections.defaultdict(list)
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    try:
        with archive.open() as file:
            for sample in _samples(file, archive, strange):
                images = [place for ending, place in sample.fields.items() if _is_image(ending, image)]
                offset, size = images[0] if images else (0, 0)
                row = (
                    printable(sample.key),
                    offset,
                    size,
                    len(images),
                    sample.texts.get("json"),
                    sample.texts.get(CLS),
                )
                for name, value in zip(_SCHEMA.names, row, strict=True):
                    columns[name].append(value)
    except OSError as error:
        raise unreachable_error(repr(archive.path), error) from error
    if not columns["key"]:
        raise DataError(
            f"{archive.path!r} contains no samples: it is compressed, damaged at its beginning, or not a tar archive. "
            "Convert it to an uncompressed .tar."
        )
    notes = tuple(note for what, names in strange.items() for note in note_names(f"{archive.name}: {what}", names))
    return pa.table(columns, _SCHEMA), notes


def _is_image(ending: str, wanted: str | None) -> bool:
    """Test whether a file with this ending is its sample's image."""
    return ending == wanted.lower().lstrip(".") if wanted else f".{ending.rpartition('.')[2]}" in EXTENSIONS


def _samples(file: Any, archive: StoredFile, strange: dict[str, list[str]]) -> Iterator[_Sample]:
    """Yield the samples of an archive.

    What is left out is added to `strange`, by reason.
    """
    sample: _Sample | None = None
    for member in _members(file, archive, strange):
        named = _SAMPLE.match(member.name)
        if not member.isreg() or named is None:
            if not member.isdir():
                strange["entries that belong to no sample, left out"].append(member.name)
            continue
        key, ending = named[1], named[2].lower()
        if sample is None or key != sample.key or ending in sample.fields:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        sample.fields[ending] = (member.offset_data, member.size)
        if ending in _TEXTS:
            text = _text(file, member)
            if text is None:
                strange[f"{ending} files that cannot be read, their samples have none"].append(member.name)
            else:
                sample.texts[ending] = text
    if sample is not None:
        yield sample


def _members(file: Any, archive: StoredFile, strange: dict[str, list[str]]) -> Iterator[tarfile.TarInfo]:
    """Yield an archive's files up to the first damage.

    The damage is added to `strange`.
    """
    last = "its beginning"
    end = 0
    damage = "the archive is damaged, the files after the damage are lost"
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            members: Any = opened
            while (member := members.next()) is not None:
                yield member
                last, end = member.name, members.offset
                members.members.clear()  # tarfile keeps every header that it has read
    except tarfile.TarError:
        strange[damage].append(f"after {last}")
        return
    file.seek(end)
    closing = file.read(512)
    if closing.strip(b"\0"):  # for tarfile, a damaged header is the end
        strange[damage].append(f"after {last}")
    elif not closing or end > archive.size:
        strange["the archive has no end mark, it may be truncated"].append(f"after {last}")


def _text(file: Any, member: tarfile.TarInfo) -> str | None:
    """Return a text file of an archive.

    It is None if the file is above 1 MiB or not UTF-8.
    """
    if member.size > _LONGEST_TEXT:
        return None
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode()
    except UnicodeDecodeError:
        return None


def _columns(samples: pa.Table, ids: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Return all samples' attributes, and notes on what cannot be one."""
    columns: dict[str, list[Any]] = {}
    broken: list[str] = []
    left: dict[str, None] = {}
    for row, text in enumerate(samples["json"].to_pylist()):
        if text is None:
            continue
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            broken.append(ids[row])
            continue
        for key, value in said.items():
            name = _storable(key)
            if value is None or isinstance(value, str | int | float | bool):
                columns.setdefault(name, [None] * len(ids))[row] = _storable(value) if isinstance(value, str) else value
            else:
                left[name] = None
    numbers = _to_numbers([None if text is None else text.strip() for text in samples[CLS].to_pylist()])
    if any(value is not None for value in numbers):
        columns[CLS] = numbers
    table = pa.table({name: _column(values) for name, values in columns.items() if name.strip()})
    notes = (
        *note_names("samples whose json is damaged, without attributes", broken),
        *note_names("entries of json files that contain lists or records, left out", list(left)),
    )
    return table, notes


def _storable(text: str) -> str:
    """Return a text that UTF-8 can hold.

    JSON can name half a character, which becomes its escape.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return printable(text)
    return text


def _to_numbers(texts: list[str | None]) -> list[Any]:
    """Convert classes to whole numbers if all of them are whole numbers."""
    if all(text is None or re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        return [None if text is None else int(text) for text in texts]
    return texts


def _column(values: list[Any]) -> pa.Array:
    """Return values as a column of their type.

    If they have several types, the column is of text.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else printable(str(value)) for value in values], pa.string())
