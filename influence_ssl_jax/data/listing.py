"""Find a data set's files: by folder, pattern or address."""

import dataclasses
import errno
import itertools
import json
import math
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import compute, ipc

from influence_ssl_jax.data.encoded import EXTENSIONS, unreachable_error
from influence_ssl_jax.data.examples import UnreachableError, digest, note_names
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.parallel import broadcast_from_first

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_NAMED = 1_000_000
"""The largest number of files that ranges may name."""
_WILD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file on this machine or at an address.

    Attributes:
        system: The file system of fsspec that it is on.
        path: Its path there.
        name: Its path below the folder that contains all files of the data set.
        size: Its size in bytes.
        version: Times or an entity tag that change with the file; empty if the system has none.
    """

    system: Any
    path: str
    name: str
    size: int
    version: str

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine."""
        return "file" in _protocols(self.system)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, fewer if the file ends before.

        Raises:
            UnreachableError: If the file cannot be read at present.
        """
        try:
            if not self.is_local:
                return self.system.cat_file(self.path, start, start + size)
            with open(self.path, "rb") as file:
                return os.pread(file.fileno(), size, start)
        except (OSError, RuntimeError) as error:
            raise UnreachableError(f"{self.path!r}: {error or type(error).__name__}") from error

    def open(self) -> Any:
        """Open the file for reading."""
        return open(self.path, "rb") if self.is_local else self.system.open(self.path, "rb")


def find_files(path: str, endings: Sequence[str]) -> list[StoredFile]:
    """Find a data set's files, in the order of their names.

    Args:
        path: A file, a folder (all files in it and below with one of the endings), a pattern with `*`, or a range
            `train-{000..146}.tar`; on this machine, or an address such as `s3://bucket/train`.
        endings: The endings of file names that are used from a folder.

    Raises:
        DataError: If there are none, one of a range is missing, or the address cannot be reached.
    """
    try:
        stored = [each for one in _expand_ranges(path) for each in _find(one, endings)]
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise DataError(f"{path!r} cannot be listed: {error or type(error).__name__}.") from error
    if not stored:
        raise DataError(
            f"There are no files {path!r}. Give a file, a pattern, or a folder of {' '.join(endings)} files."
        )
    parents = [posixpath.dirname(file.path) for file in stored]
    above = posixpath.commonpath(parents) if all(parents) else ""
    named = [dataclasses.replace(file, name=posixpath.relpath(file.path, above or ".")) for file in stored]
    return sorted(named, key=lambda file: file.name)


def _expand_ranges(path: str) -> list[str]:
    """Expand a path's ranges, such as `{00..03}`, to all its paths."""
    ranges = _RANGE.findall(path)
    count = math.prod(max(0, int(high) - int(low) + 1) for low, high in ranges)
    if count > MOST_NAMED:
        raise DataError(
            f"{path!r} names {count:,} files, more than {MOST_NAMED:,}; give a smaller range, or a pattern."
        )
    numbers = [[str(k).zfill(len(low)) for k in range(int(low), int(high) + 1)] for low, high in ranges]
    parts = _RANGE.sub("\0", path).split("\0")
    return [
        "".join(itertools.chain.from_iterable(itertools.zip_longest(parts, chosen, fillvalue="")))
        for chosen in itertools.product(*numbers)
    ]


def _find(path: str, endings: Sequence[str]) -> list[StoredFile]:
    """Find the files of a path without ranges."""
    system, plain = fsspec.core.url_to_fs(os.path.expanduser(path))
    if _WILD.search(plain):
        infos = list(system.glob(plain, detail=True).values())
    elif system.isdir(plain):
        every = system.find(plain, detail=True)
        infos = [info for name, info in every.items() if name.lower().endswith(tuple(endings))]
    else:
        infos = [system.info(plain)]
    return [_stored_file(system, info) for info in infos if info["type"] == "file"]


def _stored_file(system: Any, info: dict[str, Any]) -> StoredFile:
    """Return a file from the facts that fsspec lists."""
    if "file" in _protocols(system):  # a copy can set the time of the content, and not that of the entry
        version = f"{info.get('mtime')} {info.get('created')} {info.get('ino')}"
    else:
        version = next(
            (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified") if key in info), ""
        )
    return StoredFile(system, info["name"], "", int(info["size"]), version)


def _protocols(system: Any) -> tuple[str, ...]:
    """Return the protocols of a file system of fsspec."""
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


pc: Any = compute  # its functions are made when it is imported: no type checker knows them

Links = Literal["skip", "follow"]
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Names(Sequence[str]):
    """File names in one array of bytes.

    A name takes about 30 bytes, where Python's texts take 100. A name becomes text when it is read. Bytes that are not
    UTF-8 become surrogates, as in `os.fsdecode`.
    """

    def __init__(self, stored: pa.LargeBinaryArray) -> None:
        self._stored = stored

    @property
    def stored(self) -> pa.LargeBinaryArray:
        """The names as bytes."""
        return self._stored

    def digest(self) -> str:
        """Return a hash of the names in their order."""
        _, ends, letters = self._stored.buffers()
        if ends is None or letters is None:  # there are no names
            return digest()
        places = np.frombuffer(ends, np.int64)[self._stored.offset :][: len(self) + 1]
        return digest(np.diff(places).astype("<i8").tobytes(), memoryview(letters)[places[0] : places[-1]].tobytes())

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [os.fsdecode(name) for name in self._stored[index].to_pylist()]
        return os.fsdecode(self._stored[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 65_536):
            yield from self[start : start + 65_536]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        images: Files with the suffix of an image, in natural order, relative to the folder; their content is not
            examined.
        sizes: Sizes of the images in bytes; −1 if the entry is not a regular file.
        others: All other files.
        notes: What was left out, with counts.
    """

    images: Names
    sizes: Int[np.ndarray, " images"]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Serialise the listing as a stream of arrow."""
        said = json.dumps({"others": self.others, "notes": self.notes}).encode()
        table = pa.table({"images": self.images.stored, "sizes": self.sizes}).replace_schema_metadata({b"said": said})
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Listing":
        """Restore a listing from the bytes of `to_bytes`."""
        with ipc.open_stream(content) as reader:
            table = reader.read_all().combine_chunks()
        said = json.loads(table.schema.metadata[b"said"])
        images = table["images"].combine_chunks()
        return cls(Names(images), table["sizes"].to_numpy(), tuple(said["others"]), tuple(said["notes"]))


@dataclasses.dataclass
class _Entries:
    """The entries of a folder, by kind."""

    images: list[bytes] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)
    loops: list[str] = dataclasses.field(default_factory=list)


def list_in_first_process(root: Path, links: Links = "skip") -> Listing:
    """List the images below `root` in the first process, for all processes.

    One process asks the file system, and all processes of the run have the same list.

    Raises:
        DataError: As `list_images`.
        InfluenceError: If it failed in the first process and this is another one.
    """
    return Listing.from_bytes(broadcast_from_first(lambda: list_images(root, links).to_bytes()))


def list_images(root: Path, links: Links = "skip") -> Listing:
    """List the images below `root`, with one system call per file.

    Hidden files and folders are left out. The notes name folders that cannot be opened, links to folders that are not
    followed, and links back to a folder above. Every other entry with the suffix of an image is listed, also a link to
    nothing, a pipe or a device.

    Args:
        root: The folder.
        links: Whether links to folders are followed.

    Raises:
        DataError: If a folder cannot be listed at present, although it is neither forbidden nor gone.

    Examples:
        >>> import pathlib, tempfile
        >>> from influence_ssl_jax.data.listing import list_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "2.png", "notes.txt"):
        ...         (pathlib.Path(folder) / name).touch()
        ...     listed = list_images(pathlib.Path(folder))
        >>> list(listed.images), listed.others
        (['2.png', '10.png'], ('notes.txt',))
    """
    listed = _Entries()
    folders = [("", frozenset({_place(root)}))]
    while folders:
        prefix, above = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        folders += _enter(entry, posixpath.join(prefix, entry.name), above, links, listed)
        except OSError as error:
            if error.errno not in _CLOSED:
                raise unreachable_error(f"The folder {str(root / prefix)!r}", error) from error
            listed.unreadable.append(f"{prefix or '.'} ({error.strerror})")
    names = pa.array(listed.images, pa.large_binary())
    order = _natural_order(listed.images)
    return Listing(
        Names(names.take(order)),
        np.array(listed.sizes, np.int64)[order],
        tuple(sorted(listed.others)),
        (
            *note_names("folders that cannot be opened, their images are not used", sorted(listed.unreadable)),
            *note_names("links to folders, not followed (links='follow' follows them)", sorted(listed.links)),
            *note_names("links back to a folder above, not followed", sorted(listed.loops)),
        ),
    )


def _enter(
    entry: os.DirEntry[str], name: str, above: frozenset[tuple[int, int]], links: Links, listed: _Entries
) -> list[tuple[str, frozenset[tuple[int, int]]]]:
    """Record an entry; return the folder to list next, if any.

    The folders above it are returned too.
    """
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link to itself
        is_folder = False
    if is_folder and entry.is_symlink() and links == "skip":
        listed.links.append(name)
    elif is_folder:
        place = _place(Path(entry.path)) if links == "follow" else None
        if place in above:
            listed.loops.append(name)
        else:
            return [(name, above if place is None else above | {place})]
    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
        listed.images.append(os.fsencode(name))
        listed.sizes.append(_size(entry))
    else:
        listed.others.append(name)
    return []


def _place(folder: Path) -> tuple[int, int]:
    """Return device and inode, which identify a folder."""
    try:
        status = folder.stat()
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    """Return a regular file's size in bytes, −1 for other entries."""
    try:
        status = entry.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _natural_order(names: Sequence[bytes]) -> Int[np.ndarray, " names"]:
    """Return the natural order of names.

    Numbers are sorted by value (2.jpg before 10.jpg), then names by text.
    """
    keys = pa.array((_NUMBER.sub(_sortable_number, name) for name in names), pa.large_binary(), size=len(names))
    table = pa.table({"key": keys, "name": pa.array(names, pa.large_binary())})
    order = pc.sort_indices(table, sort_keys=[("key", "ascending"), ("name", "ascending")])
    return order.to_numpy().astype(np.int64)


_NUMBER = re.compile(rb"[0-9]+")


def _sortable_number(number: re.Match[bytes]) -> bytes:
    """Write a number so that texts sort by value.

    The text is the length in four digits, then the digits.
    """
    digits = number[0].lstrip(b"0") or b"0"
    return b"%04d%s" % (len(digits), digits)
