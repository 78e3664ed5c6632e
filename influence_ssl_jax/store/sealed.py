"""JSON files that know when they are damaged: every one holds the checksum of its own content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store.files import write_atomically

SUM = "sum"
"""The key of the checksum: SHA-256 of the content without it, as JSON with sorted keys."""


class DamagedError(StoreError):
    """A file that is not what was written."""


def write_sealed(path: Path, content: Mapping[str, Plain], indent: int | None = 2) -> None:
    """Write a JSON object with its checksum, whole or not at all.

    Args:
        path: Where to.
        content: Plain JSON; the key `sum` is taken.
        indent: Of the text.
    """
    plain = json.loads(json.dumps(content))
    text = json.dumps({**plain, SUM: checksum(plain)}, indent=indent, ensure_ascii=False)
    write_atomically(path, text.encode("utf-8", "surrogatepass"))


def read_sealed(path: Path) -> dict[str, Plain]:
    """Read what `write_sealed` wrote, without the checksum.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: A bit of its content is not what was written.
    """
    content = read_object(path)
    found = content.pop(SUM, None)
    if found != checksum(content):
        raise DamagedError(f"{path} is damaged: its content does not have the checksum that it was written with.")
    return content


def read_object(path: Path) -> dict[str, Plain]:
    """Read one JSON object.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It is not JSON, or no object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: nested deeper than anything that is written here
        raise DamagedError(f"{path} is damaged: it is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged: it holds {type(content).__name__}, not an object.")
    return content


def checksum(content: Mapping[str, Plain]) -> str:
    """Return the SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
