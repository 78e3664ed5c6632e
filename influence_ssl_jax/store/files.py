"""Files that are whole or absent, and a folder that one process writes."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from influence_ssl_jax.errors import StoreError, disk_of

TEMPORARY = ".tmp"
LOCK = "lock"
BEAT, PATIENCE, SETTLE = 5.0, 15.0, 1.0
"""Seconds between two signs of life of a lock, of watching for one, and until a lock without the kernel's help counts."""
UNSUPPORTED = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF, errno.EACCES}
)
"""What a file system says that has no locks, or cannot wait for the names in a folder."""
_log = logging.getLogger(__name__)


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
    """Wait until the names in a folder are on disk, where the file system can say so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> dict[str, str | int]:
    """Return what a lock file says of the process that holds it; empty where nobody does."""
    try:
        said = json.loads(path.read_bytes().rstrip(b"\0\n ") or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    types = {"host": str, "pid": int, "beat": int}
    return said if isinstance(said, dict) and all(type(said.get(key)) is kind for key, kind in types.items()) else {}


def living(paths: Sequence[Path]) -> list[Path]:
    """Name the lock files whose holders on other hosts are alive, after at most PATIENCE seconds of watching.

    A holder writes a new number into its file every BEAT seconds. No clocks are compared: a number that changes while it
    is watched belongs to a process that lives.
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


class Held:
    """A folder that this process holds, until it is closed or the process ends, however it ends.

    The kernel's lock says so to processes that see it. For the others, on file systems where it is missing or known to
    one host alone, the lock file names host and process and has a number that grows every BEAT seconds.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self._beat = path, file, 0
        self.lost = False
        self._token = secrets.token_hex(4)
        self._end = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._go_on, name="lock", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ours(self) -> bool:
        """Whether the file still names this process."""
        return holder_of(self._path).get("token") == self._token

    def close(self) -> None:
        """Let another process have the folder."""
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
            if said and said.get("token") != self._token:  # this process stood still, and another has taken the folder
                self.lost = True
                return
            with contextlib.suppress(OSError):  # a full disk stops the run elsewhere, with a word
                self._write()

    def _write(self) -> None:
        self._beat += 1
        said = {"host": socket.gethostname(), "pid": os.getpid(), "beat": self._beat, "token": self._token}
        text = f"{json.dumps(said)}\n".encode()
        os.ftruncate(self._file.fileno(), os.pwrite(self._file.fileno(), text, 0))


def lock(folder: Path) -> Held:
    """Hold the folder until the returned object is closed or the process ends, however it ends.

    Raises:
        StoreError: Another process holds it.
        FullDiskError: The disk takes no more.
    """
    path = folder / LOCK
    with disk_of(path):
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        known = _kernel_lock(file)
        said = holder_of(path)
        here = said.get("host") == socket.gethostname()
        if known is False or (known is None and here and _runs(int(said["pid"]))) or living([path]):
            raise StoreError(
                f"{folder} is being written by another run (process {said.get('pid', 'unknown')} on "
                f"{said.get('host', 'an unknown host')}). Wait for it, or choose another folder."
            )
        with disk_of(path):
            held = Held(path, file)
    except BaseException:
        file.close()
        raise
    if known is None:
        time.sleep(SETTLE)  # of two that came at once, the last one to write keeps the folder
        if not held.ours:
            held.close()
            raise StoreError(f"{folder} was taken by another run at the same moment. Wait for it, or choose another.")
    return held


def _kernel_lock(file: TextIO) -> bool | None:
    """Whether the kernel gave the lock; None where the file system has none."""
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
    """Whether a process of this host is there; one that has ended and was not waited for is not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
