"""Images in tar archives as WebDataset writes them."""

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

from influence_ssl_jax.data.encoded import EXTENSIONS, MAX_BYTES, Encoded, UndecodableImage, unreachable
from influence_ssl_jax.data.listing import Stored, stored
from influence_ssl_jax.data.source import Source, absolute_path, counted, digest
from influence_ssl_jax.data.table import Classes, classes
from influence_ssl_jax.errors import DataError, printable

ENDINGS = (".tar",)
FORMAT = 1
"""Of a kept index."""
CLS = "cls"
_TEXTS = ("json", CLS)
_LONGEST_TEXT = 2**20
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
    """Tar archives of samples, as WebDataset writes them: files of one sample share the name up to the first dot.

    A sample has an image (`0001.jpg`, png, webp, …), and may have a class (`0001.cls`) and attributes (`0001.json`, of
    which numbers, texts and truth values become attributes). Where the images lie is found in one pass over each archive
    and kept in `$XDG_CACHE_HOME/influence-ssl/shards` (`~/.cache/…`); any example is then read by itself. Its id is
    archive/name. What follows a damaged place of an archive cannot be found: said in a note.

    Attributes:
        path: An archive, a folder, a pattern, or a range such as `train-{000..146}.tar`; local or an address that fsspec
            knows.
        image: The ending of the image where a sample has several, such as `input.png`.
        label: The class: `cls`, or an attribute; `cls`, or the attribute `label`, where None.
    """

    path: str
    image: str | None = None
    label: str | None = None

    def absolute(self) -> "Source":
        """Return the same data set by absolute paths."""
        return dataclasses.replace(super().absolute(), path=absolute_path(self.path))

    def _open(self) -> "OpenShards":
        """Find the samples.

        Raises:
            DataError: There are no such archives, one cannot be read, or there is no sample with an image in them.
        """
        archives = stored(self.path, ENDINGS)
        indices = [_index(archive, self.image) for archive in archives]
        samples = pa.concat_tables(
            [
                table.append_column("archive", pa.array([k] * len(table), pa.int32()))
                for k, (table, _) in enumerate(indices)
            ]
        )
        if not np.any(samples["images"].to_numpy() > 0):
            raise DataError(
                f"No archive of {self.path!r} holds an image with the ending of one ({' '.join(sorted(EXTENSIONS))})."
            )
        several = np.flatnonzero(samples["images"].to_numpy() > 1)
        if len(several):
            row = samples.slice(int(several[0]), 1).to_pylist()[0]
            raise DataError(
                f"{len(several)} samples have several images, the first {archives[row['archive']].name}/{row['key']}: name "
                "the ending of the one that is meant with --source.image, such as input.png."
            )
        return OpenShards(self, archives, samples, tuple(note for _, notes in indices for note in notes))


class OpenShards(Encoded):
    """Samples of archives, one archive after the other."""

    def __init__(self, settings: Shards, archives: Sequence[Stored], samples: pa.Table, notes: tuple[str, ...]) -> None:
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
        """The values of the classes, in the order of their numbers."""
        return None if self._labels is None else self._labels.values

    def _stored(self, index: int) -> bytes:
        """Return the encoded image of one sample."""
        if not self._images[index]:
            raise UndecodableImage("the sample has no image")
        size = int(self._size[index])
        if size > MAX_BYTES:
            raise UndecodableImage(f"a file of {size:,} bytes, more than the {MAX_BYTES:,} that are read")
        content = self._archives[self._archive[index]].read(int(self._offset[index]), size)
        if len(content) < size:
            raise UndecodableImage(f"the archive is cut short: {len(content)} of {size} bytes are there")
        return content

    def ids(self) -> Sequence[str]:
        """Return archive and key of every sample."""
        return self._ids

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Return the class of every sample, −1 where it has none."""
        return np.full(len(self), -1, np.int32) if self._labels is None else self._labels.labels

    def attributes(self) -> pa.Table | None:
        """Return the classes and what the JSON files say."""
        return self._columns if self._columns.column_names else None

    @functools.cached_property
    def _identity(self) -> str:
        files = [f"{archive.name} {archive.size}" for archive in self._archives]
        places = (np.ascontiguousarray(each, "<i8").tobytes() for each in (self._offset, self._size, self._archive))
        known = "" if self._labels is None else digest(*self._labels.values, self._labels.labels.tobytes())
        columns = (str(column.to_pylist()) for column in self._columns.columns)
        return digest("shards", *files, *self._ids, *places, known, str(self._columns.schema), *columns)

    def fingerprint(self) -> str:
        """Hash the names and sizes of the archives, the names, places and sizes of the images, attributes and classes.

        The bytes of the images do not count: one that was replaced by another of its size goes unseen.
        """
        return self._identity

    def notes(self) -> tuple[str, ...]:
        """What is damaged or was passed over."""
        return self._notes

    def _read_labels(self) -> Classes | None:
        named, known = self._settings.label, self._columns.column_names
        if named is None:
            named = next((name for name in (CLS, "label") if name in known), None)
            if named is None:
                return None
        elif named not in known:
            raise DataError(f"There is no attribute {named!r} to use as the class; there are {known}.")
        return classes(self._columns[named], f"The label {named!r}")


def _index(archive: Stored, image: str | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the samples of an archive, and notes: from the kept index where there is one of this very file."""
    kept = _kept_in() / f"{digest(str(FORMAT), archive.path, str(archive.size), archive.version, str(image))}.parquet"
    try:
        table = parquet.read_table(kept)
        if table.schema.equals(_SCHEMA):
            return table, tuple(json.loads((table.schema.metadata or {})[b"notes"]))
    except (OSError, pa.ArrowException, ValueError, KeyError):  # not there yet, or damaged: made anew
        pass
    table, notes = _indexed(archive, image)
    if archive.version:
        _keep(table.replace_schema_metadata({b"notes": json.dumps(notes).encode()}), kept)
    return table, notes


def _kept_in() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "influence-ssl" / "shards"


def _keep(table: pa.Table, file: Path) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, unfinished)
        unfinished.replace(file)
    except OSError:  # a place that cannot be written to costs the next run one pass
        with contextlib.suppress(OSError):
            unfinished.unlink()


@dataclasses.dataclass
class _Sample:
    key: str
    fields: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # ending → offset, size
    texts: dict[str, str] = dataclasses.field(default_factory=dict)


def _indexed(archive: Stored, image: str | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Find the samples of an archive in one pass over the headers of its files.

    Raises:
        DataError: It is compressed, no tar archive, or cannot be read.
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
        raise unreachable(repr(archive.path), error) from error
    if not columns["key"]:
        raise DataError(
            f"{archive.path!r} holds no samples: it is compressed, damaged from the start, or no tar archive. Unpack it to "
            "a plain .tar."
        )
    notes = tuple(note for what, names in strange.items() for note in counted(f"{archive.name}: {what}", names))
    return pa.table(columns, _SCHEMA), notes


def _is_image(ending: str, wanted: str | None) -> bool:
    return ending == wanted.lower().lstrip(".") if wanted else f".{ending.rpartition('.')[2]}" in EXTENSIONS


def _samples(file: Any, archive: Stored, strange: dict[str, list[str]]) -> Iterator[_Sample]:
    """Yield the samples of an archive; fills `strange` with what is passed over, by reason."""
    sample: _Sample | None = None
    for member in _members(file, archive, strange):
        named = _SAMPLE.match(member.name)
        if not member.isreg() or named is None:
            if not member.isdir():
                strange["entries that belong to no sample, passed over"].append(member.name)
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
                strange[f"{ending} files that cannot be read, the sample is without"].append(member.name)
            else:
                sample.texts[ending] = text
    if sample is not None:
        yield sample


def _members(file: Any, archive: Stored, strange: dict[str, list[str]]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive up to its end or to the first damaged place, which is noted."""
    last = "its beginning"
    end = 0
    damage = "the archive is damaged, what follows is lost"
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            members: Any = opened
            while (member := members.next()) is not None:
                yield member
                last, end = member.name, members.offset
                members.members.clear()  # tarfile keeps every header it has read
    except tarfile.TarError:
        strange[damage].append(f"after {last}")
        return
    file.seek(end)
    closing = file.read(512)
    if closing.strip(b"\0"):  # tarfile takes a damaged header for the end
        strange[damage].append(f"after {last}")
    elif not closing or end > archive.size:
        strange["the archive has no mark of its end, it may have been cut short"].append(f"after {last}")


def _text(file: Any, member: tarfile.TarInfo) -> str | None:
    """Return a short text file of an archive; None where it is too long or no UTF-8."""
    if member.size > _LONGEST_TEXT:
        return None
    file.seek(member.offset_data)
    try:
        return file.read(member.size).decode()
    except UnicodeDecodeError:
        return None


def _columns(samples: pa.Table, ids: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the attributes of all samples, and notes of what could not become one."""
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
        for name, value in said.items():
            if value is None or isinstance(value, str | int | float | bool):
                columns.setdefault(name, [None] * len(ids))[row] = value
            else:
                left[name] = None
    numbers = _whole([None if text is None else text.strip() for text in samples[CLS].to_pylist()])
    if any(value is not None for value in numbers):
        columns[CLS] = numbers
    table = pa.table({name: _column(values) for name, values in columns.items() if name.strip()})
    notes = (
        *counted("samples whose json is damaged, without attributes", broken),
        *counted("entries of json files that hold lists or records, left out", list(left)),
    )
    return table, notes


def _whole(texts: list[str | None]) -> list[Any]:
    """Turn classes into whole numbers where all are such."""
    if all(text is None or re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        return [None if text is None else int(text) for text in texts]
    return texts


def _column(values: list[Any]) -> pa.Array:
    """Return values of one type as such, values of several as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else printable(str(value)) for value in values], pa.string())
