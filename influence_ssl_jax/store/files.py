"""Files that are whole or absent, and a folder that one process writes."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from influence_ssl_jax.errors import StoreError, disk_of

TEMPORARY = ".tmp"
LOCK = "lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when the block ends well; until then `path` is what it was.

    Nothing is left behind where the block fails.

    Raises:
        FullDiskError: The disk takes no more.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with disk_of(path):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> str:
    """Write `content` so that a crash at any moment leaves the old file or the new one, and return its SHA-256."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk; a crash can leave it torn, never any line before it."""
    with disk_of(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> TextIO:
    """Hold the folder until the returned file is closed or the process ends, however it ends.

    Raises:
        StoreError: Another process holds it.
        FullDiskError: The disk takes no more.
    """
    file = (folder / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StoreError(
            f"{folder} is being written by another run (process {holder}). Wait for it, or choose another folder."
        ) from None
    try:
        with disk_of(folder / LOCK):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())  # at once: a buffer would try again when it is closed
    except BaseException:
        file.close()
        raise
    return file
