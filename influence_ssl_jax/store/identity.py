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
MEANING = {
    "data": "other images, names, classes or attributes",
    "encoder": "other parameters",
    "images": "scores of other bytes of images",
    "scores": "scores of another run",
}
"""What has changed if a part of an identity that is a hash has changed."""


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
        listed = list_differences(held[0], other)
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
    listed = list_differences(held, identity)
    if listed:
        raise StoreError(
            f"{folder} holds the results of another run. What differs (there → now):\n{listed}\n"
            "Choose another folder, or delete this one to start anew."
        )
    return identity


def list_differences(before: Plain, after: Plain) -> str:
    """Return the first differences of two identities, one a line.

    What a hash stands for is said.

    >>> list_differences({"draws": 2, "data": "3f"}, {"draws": 2, "data": "a0"})
    '  data: 3f → a0 (other images, names, classes or attributes)'
    """
    differing = differences(before, after)
    more = [f"  … and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    meant = ((line, MEANING.get(line.partition(":")[0])) for line in differing[:SHOWN])
    return "\n".join([*(f"  {line}" + (f" ({said})" if said else "") for line, said in meant), *more])
