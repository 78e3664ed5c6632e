"""Files by path, pattern or address, on this machine or wherever fsspec reaches."""

import dataclasses
import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import fsspec

from influence_ssl_jax.data.source import UnreachableError
from influence_ssl_jax.errors import DataError

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
