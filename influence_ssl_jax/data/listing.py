"""Find the files of a data set: in a folder, by a pattern, or at an address."""

import dataclasses
import errno
import itertools
import json
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

from influence_ssl_jax.data.encoded import EXTENSIONS, unreachable
from influence_ssl_jax.data.source import UnreachableError, counted, digest
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.parallel import from_first

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class Stored:
    """One file.

    Attributes:
        system: The file system it is on.
        path: Its path there.
        name: Its path below the folder that all files of the data set are in.
        size: In bytes.
        version: What changes where the file does: a time or an entity tag; empty where nothing says it.
    """

    system: Any
    path: str
    name: str
    size: int
    version: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return "file" in _protocols(self.system)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, fewer where the file ends before.

        Raises:
            UnreachableError: The file cannot be read for now.
        """
        try:
            if not self.is_local:
                return self.system.cat_file(self.path, start, start + size)
            with open(self.path, "rb") as file:
                return os.pread(file.fileno(), size, start)
        except (OSError, RuntimeError) as error:
            raise UnreachableError(f"{self.path!r}: {error or type(error).__name__}") from error

    def open(self) -> Any:
        """Open it for reading."""
        return open(self.path, "rb") if self.is_local else self.system.open(self.path, "rb")


def stored(path: str, endings: Sequence[str]) -> list[Stored]:
    """Find the files of a data set, in the order of their names.

    Args:
        path: A file, a folder (all files in it and below that end so), a pattern with `*`, or a range
            `train-{000..146}.tar`; local, or an address such as `s3://bucket/train`.
        endings: What the names of files in a folder end in.

    Raises:
        DataError: There are none, one of a range is missing, or the address cannot be reached.
    """
    try:
        found = [each for one in _spread(path) for each in _found(one, endings)]
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise DataError(f"{path!r} cannot be listed: {error or type(error).__name__}.") from error
    if not found:
        raise DataError(f"There are no files {path!r} (of a folder, those that end in {' '.join(endings)} are read).")
    parents = [posixpath.dirname(file.path) for file in found]
    above = posixpath.commonpath(parents) if all(parents) else ""
    named = [dataclasses.replace(file, name=posixpath.relpath(file.path, above or ".")) for file in found]
    return sorted(named, key=lambda file: file.name)


def _spread(path: str) -> list[str]:
    """Write out the ranges of a path."""
    ranges = _RANGE.findall(path)
    numbers = [[str(k).zfill(len(low)) for k in range(int(low), int(high) + 1)] for low, high in ranges]
    parts = _RANGE.sub("\0", path).split("\0")
    return [
        "".join(itertools.chain.from_iterable(itertools.zip_longest(parts, chosen, fillvalue="")))
        for chosen in itertools.product(*numbers)
    ]


def _found(path: str, endings: Sequence[str]) -> list[Stored]:
    system, plain = fsspec.core.url_to_fs(os.path.expanduser(path))
    if _WILD.search(plain):
        infos = list(system.glob(plain, detail=True).values())
    elif system.isdir(plain):
        every = system.find(plain, detail=True)
        infos = [info for name, info in every.items() if name.lower().endswith(tuple(endings))]
    else:
        infos = [system.info(plain)]
    return [_as_stored(system, info) for info in infos if info["type"] == "file"]


def _as_stored(system: Any, info: dict[str, Any]) -> Stored:
    version = next(
        (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified") if key in info), ""
    )
    return Stored(system, info["name"], "", int(info["size"]), version)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


pc: Any = compute  # its functions are made when it is imported: no type checker knows them

Links = Literal["skip", "follow"]
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Names(Sequence[str]):
    """File names as bytes in one array, some 30 bytes each in place of Python's 100; each is text when it is read.

    A name that is not UTF-8 has, as everywhere in Python, a surrogate for each byte that is none.
    """

    def __init__(self, stored: pa.LargeBinaryArray) -> None:
        self._stored = stored

    @property
    def stored(self) -> pa.LargeBinaryArray:
        """The names as bytes."""
        return self._stored

    def digest(self) -> str:
        """Hash the names in their order."""
        _, ends, letters = self._stored.buffers()
        if ends is None or letters is None:  # no names
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
        images: Files whose name is that of an image, in natural order, relative to the folder; whatever they turn out to
            be when they are read.
        sizes: Of the images, in bytes; −1 where there is no regular file.
        others: Further files.
        notes: What was passed over, counted.
    """

    images: Names
    sizes: Int[np.ndarray, " images"]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Write it as one arrow stream."""
        said = json.dumps({"others": self.others, "notes": self.notes}).encode()
        table = pa.table({"images": self.images.stored, "sizes": self.sizes}).replace_schema_metadata({b"said": said})
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Listing":
        """Read what `to_bytes` wrote."""
        with ipc.open_stream(content) as reader:
            table = reader.read_all().combine_chunks()
        said = json.loads(table.schema.metadata[b"said"])
        images = table["images"].combine_chunks()
        return cls(Names(images), table["sizes"].to_numpy(), tuple(said["others"]), tuple(said["notes"]))


@dataclasses.dataclass
class _Found:
    images: list[bytes] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)
    loops: list[str] = dataclasses.field(default_factory=list)


def listed_once(root: Path, links: Links = "skip") -> Listing:
    """List the images below `root` in the first process of the run, and hand the list to the others.

    So no file system answers every process of a large run, and none that lags behind gives one of them another list.

    Raises:
        DataError: As `listed`.
        InfluenceError: It failed in the first process, and this is another one.
    """
    return Listing.from_bytes(from_first(lambda: listed(root, links).to_bytes()))


def listed(root: Path, links: Links = "skip") -> Listing:
    """List the images below `root`, one system call a file; hidden files and folders are passed over.

    A folder that cannot be opened, a linked folder that is not followed, and one that leads back to a folder above it
    are noted. Whatever else bears an image's name is listed: a link that leads nowhere, a pipe, a device.

    Args:
        root: The folder.
        links: Whether links to folders are followed.

    Raises:
        DataError: A folder cannot be listed at present, though nothing says that it is closed or gone.
    """
    found = _Found()
    folders = [("", frozenset({_place(root)}))]
    while folders:
        prefix, above = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        folders += _entered(entry, posixpath.join(prefix, entry.name), above, links, found)
        except OSError as error:
            if error.errno not in _CLOSED:
                raise unreachable(f"The folder {str(root / prefix)!r}", error) from error
            found.unreadable.append(f"{prefix or '.'} ({error.strerror})")
    names = pa.array(found.images, pa.large_binary())
    order = _natural_order(found.images)
    return Listing(
        Names(names.take(order)),
        np.array(found.sizes, np.int64)[order],
        tuple(sorted(found.others)),
        (
            *counted("folders that cannot be opened, their images are not used", sorted(found.unreadable)),
            *counted("linked folders, not followed (links='follow' would follow them)", sorted(found.links)),
            *counted("linked folders that lead back to where they are, not followed again", sorted(found.loops)),
        ),
    )


def _entered(
    entry: os.DirEntry[str], name: str, above: frozenset[tuple[int, int]], links: Links, found: _Found
) -> list[tuple[str, frozenset[tuple[int, int]]]]:
    """Note a file; of a folder that is to be listed too, return its name and the folders it is in."""
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link to itself
        is_folder = False
    if is_folder and entry.is_symlink() and links == "skip":
        found.links.append(name)
    elif is_folder:
        place = _place(Path(entry.path)) if links == "follow" else None
        if place in above:
            found.loops.append(name)
        else:
            return [(name, above if place is None else above | {place})]
    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
        found.images.append(os.fsencode(name))
        found.sizes.append(_size(entry))
    else:
        found.others.append(name)
    return []


def _place(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from every other one."""
    try:
        status = folder.stat()
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _natural_order(names: Sequence[bytes]) -> Int[np.ndarray, " names"]:
    """Return the order in which numbers in names count by value (2.jpg before 10.jpg), equal ones by their text."""
    keys = pa.array((_NUMBER.sub(_by_value, name) for name in names), pa.large_binary(), size=len(names))
    table = pa.table({"key": keys, "name": pa.array(names, pa.large_binary())})
    order = pc.sort_indices(table, sort_keys=[("key", "ascending"), ("name", "ascending")])
    return order.to_numpy().astype(np.int64)


_NUMBER = re.compile(rb"[0-9]+")


def _by_value(number: re.Match[bytes]) -> bytes:
    """Write a number so that longer ones come later: its length in four digits, then its digits without zeros in front."""
    digits = number[0].lstrip(b"0") or b"0"
    return b"%04d%s" % (len(digits), digits)
