"""Whose scores a folder holds."""

import json
from pathlib import Path

from influence_ssl_jax.configuration import Plain, differences
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store.files import LOCK, TEMPORARY, write_atomically

IDENTITY = "identity.json"


def refuse_foreign(folder: Path) -> None:
    """A folder without an identity is used only where nobody could miss what is in it.

    Raises:
        StoreError: There is something in it.
    """
    if (folder / IDENTITY).exists():
        return
    foreign = [f.name for f in folder.iterdir() if f.name != LOCK and not f.name.endswith(TEMPORARY)]
    if foreign:
        raise StoreError(f"{folder} is not empty and holds no scores ({foreign[0]}, …). Choose a new or empty folder.")


def claim(folder: Path, identity: Plain) -> Plain:
    """Write the identity, or compare with the one that is there; returns it as JSON has it.

    Raises:
        StoreError: The folder is another run's; the message lists every difference.
    """
    identity = json.loads(json.dumps(identity))
    path = folder / IDENTITY
    if not path.exists():
        write_atomically(path, json.dumps(identity, indent=2).encode())
        return identity
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise StoreError(f"{path} is damaged, so nothing says whose scores these are. Choose another folder.") from None
    differing = differences(held, identity)
    if differing:
        listed = "\n".join(f"  {line}" for line in differing[:20])
        raise StoreError(
            f"{folder} holds the results of another run. What differs (there → now):\n{listed}\n"
            "Choose another folder, or delete this one to start anew."
        )
    return identity
