"""Record to which run a folder belongs, and refuse another one."""

import json
import logging
from collections.abc import Collection
from pathlib import Path

from influence_ssl_jax.configuration import Plain, differences, fingerprint
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.parallel import gather
from influence_ssl_jax.store.files import LOCK, TEMPORARY, DamagedError, read_sealed, write_sealed

IDENTITY = "identity.json"
ADVICE = "Choose another folder, or delete this one to start again."
SHOWN = 20
"""How many differences a message lists."""
MEANING = {
    "data": "other images, names, classes or attributes",
    "encoder": "other parameters",
    "network.network.program": "other operations or constants of your function",
    "images": "scores of other bytes of images",
    "scores": "scores of another run",
}
"""What has changed if a part of an identity that is a hash has changed."""


_log = logging.getLogger(__name__)


def refuse_foreign(folder: Path, owners: Collection[str] = (), name: str = IDENTITY, content: str = "scores") -> None:
    """Check that a folder is a run's or empty.

    Args:
        folder: The folder.
        owners: Fingerprints of the runs that results in it name.
        name: The file of the identity.
        content: What a run writes, for the error.

    Raises:
        StoreError: It holds other files.
    """
    if owners or (folder / name).exists():
        return
    foreign = [f.name for f in folder.iterdir() if f.name != LOCK and not f.name.endswith(TEMPORARY)]
    if foreign:
        raise StoreError(
            f"{folder} is not empty and holds no {content} ({foreign[0]}, …). Choose a new or empty folder."
        )


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


def claim(
    folder: Path, identity: Plain, owners: Collection[str] = (), advice: str = ADVICE, name: str = IDENTITY
) -> Plain:
    """Write a run's identity to its folder, or compare the stored one.

    If the stored one is damaged, absent or of another run, and all results in the folder are of this run, it is written
    again.

    Args:
        folder: The folder of the run.
        identity: Everything that the results depend on; plain JSON.
        owners: Fingerprints of the runs that the results in the folder name.
        advice: What to do if the folder is another run's.
        name: The file of the identity.

    Returns:
        The identity as JSON reads it back.

    Raises:
        StoreError: The folder belongs to another run; the differences are listed if they are known.
    """
    identity = json.loads(json.dumps(identity))
    path, foreign = folder / name, set(owners) - {fingerprint(identity)}
    try:
        held, reason = read_sealed(path), f"{path} is of another run than the results beside it."
    except FileNotFoundError:
        held, reason = None, f"{path} is not there." if owners else ""
    except DamagedError as error:
        held, reason = None, str(error)
    listed = "" if held is None else list_differences(held, identity)
    if held is not None and not listed:
        return identity
    if listed and (foreign or not owners):
        raise StoreError(f"{folder} holds the results of another run. What differs (there → now):\n{listed}\n{advice}")
    if foreign:
        raise StoreError(
            f"{reason} The results in {folder} are not those of this command. Give the command that made them, which writes "
            f"{name} again. {advice}"
        )
    if reason:
        _log.warning("%s It is written again.", reason)
    write_sealed(path, identity)
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
