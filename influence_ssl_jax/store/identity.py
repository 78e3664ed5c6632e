"""Record to which run a folder belongs, and refuse another one."""

import json
from pathlib import Path

from influence_ssl_jax.configuration import Plain, differences
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.parallel import gather
from influence_ssl_jax.store.files import LOCK, TEMPORARY, DamagedError, read_sealed, write_sealed

IDENTITY = "identity.json"
SHOWN = 20
"""How many differences a message lists."""


def refuse_foreign(folder: Path) -> None:
    """Check that a folder is a run's or empty.

    Raises:
        StoreError: It holds other files.
    """
    if (folder / IDENTITY).exists():
        return
    foreign = [f.name for f in folder.iterdir() if f.name != LOCK and not f.name.endswith(TEMPORARY)]
    if foreign:
        raise StoreError(f"{folder} is not empty and holds no scores ({foreign[0]}, …). Choose a new or empty folder.")


def refuse_disagreement(identity: Plain) -> None:
    """Check that all processes of a run do the same work.

    Otherwise each of them raises the error.

    Raises:
        StoreError: Two processes differ; the message lists the differences.
    """
    held = [json.loads(text) for text in gather(json.dumps(identity))]
    for number, other in enumerate(held):
        listed = _listed(held[0], other)
        if listed:
            raise StoreError(
                f"The processes of this run were not started for the same work. What differs (process 0 → process "
                f"{number}):\n{listed}\nGive every process the same command, the same data and the same versions."
            )


def claim(folder: Path, identity: Plain) -> Plain:
    """Write a run's identity to its folder, or compare the stored one.

    Args:
        folder: The folder of the run.
        identity: Everything that the results depend on; plain JSON.

    Returns:
        The identity as JSON reads it back.

    Raises:
        StoreError: The folder belongs to another run (the differences are listed), or its identity is damaged.
    """
    identity = json.loads(json.dumps(identity))
    path = folder / IDENTITY
    if not path.exists():
        write_sealed(path, identity)
        return identity
    try:
        held = read_sealed(path)
    except DamagedError as error:
        raise StoreError(f"{error} So nothing says whose scores these are. Choose another folder.") from None
    listed = _listed(held, identity)
    if listed:
        raise StoreError(
            f"{folder} holds the results of another run. What differs (there → now):\n{listed}\n"
            "Choose another folder, or delete this one to start anew."
        )
    return identity


def _listed(before: Plain, after: Plain) -> str:
    """Return the first differences as text, one a line."""
    differing = differences(before, after)
    more = [f"  … and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    return "\n".join([*(f"  {line}" for line in differing[:SHOWN]), *more])
