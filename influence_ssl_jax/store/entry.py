"""Taking hold of an output folder."""

from pathlib import Path
from typing import TextIO

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.store.identity import claim, refuse_foreign
from influence_ssl_jax.store.parts import Parts
from influence_ssl_jax.store.result import RUN, SCORES


def enter(folder: Path, identity: Plain, size: int) -> tuple[TextIO, int]:
    """Hold the folder for the whole run and check every part in it: the lock, and how many listed rows are lost.

    Raises:
        StoreError: The folder is a file, is in use, or holds another run or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; the output is a folder. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign(folder)
    held = lock(folder)
    try:
        claim(folder, identity)
        parts = Parts.load(folder / "parts", size)
        parts.check()
        if not parts.finished().all():  # an earlier result that is no longer whole must not pass for one
            for name in (SCORES, RUN):
                (folder / name).unlink(missing_ok=True)
    except BaseException:
        held.close()
        raise
    return held, parts.lost
