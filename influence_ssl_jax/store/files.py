"""Write whole files or none, seal JSON with checksums, lock folders."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from influence_ssl_jax.configuration import Plain, fingerprint
from influence_ssl_jax.errors import StoreError, disk_of

TEMPORARY = ".tmp"
LOCK = "lock"
BEAT, PATIENCE, SETTLE = 5.0, 15.0, 1.0
"""Seconds between two signs of life of a lock, of watching for one, and until a lock counts without the kernel."""
UNSUPPORTED = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF, errno.EACCES}
)
"""Errors of a file system that has no locks, or cannot wait until the names in a folder are on disk."""
SUM = "sum"
"""The key of the checksum in a sealed file: SHA-256 of the content without it, as JSON with sorted keys."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a temporary file in the block, then replace `path` by it.

    Until then `path` is what it was. If the block fails, the temporary file is deleted.

    Yields:
        The path of the temporary file.

    Raises:
        StoreError: `path` is a folder, a device or a pipe, which no file may replace.
        FullDiskError: The disk is full.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise StoreError(f"{path} is {kind} and is not replaced by a file. Give the path of a file.")
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
    """Write `content` to a file as a whole, and return its SHA-256.

    A crash at any moment leaves the old file or the new one.

    Raises:
        FullDiskError: The disk is full.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(pathlib.Path(folder) / "a", b"content")[:8]
    'ed7002b4'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, and wait for the disk.

    A crash can cut this line short. The lines before it stay whole.

    Raises:
        FullDiskError: The disk is full.
    """
    with disk_of(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


class DamagedError(StoreError):
    """A file has changed since it was written."""


def write_sealed(path: Path, content: Mapping[str, Plain], indent: int | None = 2) -> None:
    """Write a JSON object with its checksum, whole or not at all.

    Args:
        path: The file.
        content: Plain JSON, without the key `sum`.
        indent: Indentation of the text.

    Raises:
        FullDiskError: The disk is full.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "a.json"
    ...     write_sealed(file, {"draws": 4})
    ...     read_sealed(file)
    {'draws': 4}
    """
    plain = json.loads(json.dumps(content))
    text = json.dumps({**plain, SUM: fingerprint(plain)}, indent=indent, ensure_ascii=False)
    write_atomically(path, text.encode("utf-8", "surrogatepass"))


def read_sealed(path: Path) -> dict[str, Plain]:
    """Read what `write_sealed` wrote, without the checksum.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: The content is not what was written.
    """
    content = read_object(path)
    recorded = content.pop(SUM, None)
    if recorded != fingerprint(content):
        raise DamagedError(f"{path} is damaged: its content does not have the checksum that it was written with.")
    return content


def read_object(path: Path) -> dict[str, Plain]:
    """Read one JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (
        ValueError,
        RecursionError,
    ) as error:  # RecursionError: nested more deeply than anything that is written here
        raise DamagedError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged: it holds {type(content).__name__}, not an object.")
    return content


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, if supported."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # the folder may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> dict[str, str | int]:
    """Read from a lock file which process holds it, if any.

    The dictionary is empty if none does.
    """
    try:
        said = json.loads(path.read_bytes().rstrip(b"\0\n ") or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    types = {"host": str, "pid": int, "beat": int}
    return said if isinstance(said, dict) and all(type(said.get(key)) is kind for key, kind in types.items()) else {}


def find_living(paths: Sequence[Path]) -> list[Path]:
    """Return the lock files whose holders on other hosts are alive.

    A holder writes a new number into its file every BEAT seconds. The files are watched for at most PATIENCE seconds: if
    a number changes, its process is alive. No clocks are compared.
    """
    before = {path: holder_of(path) for path in paths}
    before = {path: said for path, said in before.items() if said and said["host"] != socket.gethostname()}
    if not before:
        return []
    hosts = ", ".join(sorted({str(said["host"]) for said in before.values()}))
    _log.warning("the last run was on %s; watching for up to %s s whether it is still alive", hosts, PATIENCE)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(0.5, PATIENCE / 10))
        moved = [path for path, said in before.items() if holder_of(path) not in ({}, said)]
        if moved:
            return moved
    return []


class Lock:
    """The lock of a folder.

    It is held until it is closed or the process ends. Processes that see the kernel's lock need no more. On some file
    systems there is none, or one host does not see that of another: for these the lock file names host and process, and
    holds a number that grows every BEAT seconds.

    Attributes:
        lost: Whether another process has taken the folder, because this one gave no sign of life for so long.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self._beat = path, file, 0
        self.lost = False
        self._token = secrets.token_hex(4)
        self._end = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._go_on, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ours(self) -> bool:
        """Whether the file still names this process."""
        return holder_of(self._path).get("token") == self._token

    def close(self) -> None:
        """Release the folder."""
        if self._file.closed:
            return
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.ours:
                os.ftruncate(self._file.fileno(), 0)
        self._file.close()

    def _go_on(self) -> None:
        while not self._end.wait(BEAT):
            said = holder_of(self._path)
            if said and said.get("token") != self._token:
                self.lost = True
                return
            with contextlib.suppress(OSError):  # the run meets a full disk elsewhere, and reports it
                self._write()

    def _write(self) -> None:
        self._beat += 1
        said = {"host": socket.gethostname(), "pid": os.getpid(), "beat": self._beat, "token": self._token}
        text = f"{json.dumps(said)}\n".encode()
        os.ftruncate(self._file.fileno(), os.pwrite(self._file.fileno(), text, 0))


def lock(folder: Path) -> Lock:
    """Lock a folder until the result is closed or the process ends.

    Raises:
        StoreError: Another process holds the lock.
        FullDiskError: The disk is full.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock(pathlib.Path(folder)) as held:
    ...     held.lost
    False
    """
    path = folder / LOCK
    with disk_of(path):
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        known = _kernel_lock(file)
        said = holder_of(path)
        here = said.get("host") == socket.gethostname()
        if known is False or (known is None and here and _runs(int(said["pid"]))) or find_living([path]):
            raise StoreError(
                f"{folder} is being written by another run (process {said.get('pid', 'unknown')} on "
                f"{said.get('host', 'an unknown host')}). Wait for it, or choose another folder."
            )
        with disk_of(path):
            held = Lock(path, file)
    except BaseException:
        file.close()
        raise
    if known is None:
        time.sleep(SETTLE)  # if two processes came at once, the last one to write keeps the folder
        if not held.ours:
            held.close()
            raise StoreError(f"{folder} was taken by another run at the same moment. Wait for it, or choose another.")
    return held


def _kernel_lock(file: TextIO) -> bool | None:
    """Ask the kernel for the lock, and return whether it was given.

    It is None if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return True


def _runs(process: int) -> bool:
    """Test whether a process of this host runs.

    One that has ended and was not waited for does not.
    """
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
