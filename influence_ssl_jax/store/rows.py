"""Write rows of a matrix into a file, part by part."""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from influence_ssl_jax.errors import FullDiskError, disk_of
from influence_ssl_jax.ihvp.disk import DiskRows
from influence_ssl_jax.store.files import DamagedError, read_sealed, write_sealed

ROWS, LIST = "rows.bin", "rows.json"
_log = logging.getLogger(__name__)


def complete_rows(
    owner: str, blocks: Sequence[DiskRows], parts: int, form: Callable[[int], Sequence[np.ndarray]]
) -> UInt8[np.ndarray, "parts 32"]:
    """Form and write every part that the file lacks.

    A sealed list beside the file has the SHA-256 of each part that was written. A part that is not in it, or whose bytes
    in the file have another digest, is formed: so a run that was stopped continues, and damaged bytes are not used.

    Args:
        owner: Fingerprint of everything that the rows depend on.
        blocks: Where the rows of each block are, all in one file.
        parts: Number of equal parts of the rows.
        form: Returns the rows of a part, block by block: [length, rows / parts, span].

    Returns:
        The digests of all parts.

    Raises:
        FullDiskError: The disk is full, or has no room for the file.
    """
    path = Path(blocks[0].path)
    size = sum(block.size for block in blocks)
    digests = _read_list(path.with_name(LIST), owner, parts)
    with disk_of(path), path.open("r+b" if path.exists() else "w+b") as file:
        held = os.fstat(file.fileno())
        free, missing = shutil.disk_usage(path.parent).free, size - 512 * held.st_blocks
        if missing > free:
            raise FullDiskError(
                f"The rows need a file of {size / 2**30:.1f} GiB, and the disk of {path} has {free / 2**30:.1f} GiB free. "
                "Make room there, choose a folder on another disk, or take fewer curvature examples or samples."
            )
        if held.st_size != size:
            file.truncate(size)
    for number in range(parts):
        if digests[number]:
            if _read_digest(path, blocks, parts, number) == digests[number]:
                continue
            _log.warning("%s is damaged in part %s of %s; its rows are formed again", path, number + 1, parts)
        arrays = [np.ascontiguousarray(array) for array in form(number)]
        with disk_of(path), path.open("r+b", buffering=0) as file:
            for place, chunk in _chunks(blocks, parts, number, arrays):
                _write(file.fileno(), chunk, place)
            os.fsync(file.fileno())
        total = hashlib.sha256()
        for array in arrays:
            total.update(array.view(np.uint8).reshape(-1).data)
        digests[number] = total.hexdigest()
        write_sealed(path.with_name(LIST), {"owner": owner, "sha256": digests})
    return np.array([list(bytes.fromhex(digest)) for digest in digests], np.uint8)


def _read_list(path: Path, owner: str, parts: int) -> list[str]:
    """Read the digests of the parts that were written; "" for others."""
    described = {}
    with contextlib.suppress(FileNotFoundError):
        try:
            described = read_sealed(path)
        except DamagedError as error:
            _log.warning("%s The rows are formed again.", error)
    digests = described.get("sha256", [])
    return digests if described.get("owner") == owner and len(digests) == parts else [""] * parts


def _chunks(
    blocks: Sequence[DiskRows], parts: int, number: int, arrays: Sequence[np.ndarray]
) -> Iterator[tuple[int, memoryview]]:
    """Yield place and bytes of every span of a part."""
    for block, array in zip(blocks, arrays, strict=True):
        size = block.rows // parts * block.span * block.itemsize
        content = array.view(np.uint8).reshape(-1).data
        for span in range(block.length):
            yield block.start + (span * parts + number) * size, content[span * size : (span + 1) * size]


def _write(file: int, content: memoryview, place: int) -> None:
    """Write all bytes at a place.

    The kernel may take fewer at a time.
    """
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def _read_digest(path: Path, blocks: Sequence[DiskRows], parts: int, number: int) -> str:
    """Return the SHA-256 of a part's bytes in the file."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for block in blocks:
            size = block.rows // parts * block.span * block.itemsize
            for span in range(block.length):
                total.update(os.pread(file.fileno(), size, block.start + (span * parts + number) * size))
    return total.hexdigest()
