"""Compiled programs are kept between runs of the command line."""

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

FOLDER, LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let JAX keep what it compiles, before it is imported: a second run of the same shapes begins at once.

    In `$XDG_CACHE_HOME/influence-ssl/jax/<host>` (`~/.cache/…`), a folder that only the user may read: a cached program
    is code. `JAX_COMPILATION_CACHE_DIR` names another folder and, set to nothing, keeps nothing.
    """
    if FOLDER in environment:
        return
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "influence-ssl" / "jax" / platform.node()  # a program is made for the machine's own processor
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a home that cannot be written is no reason to stop
        return
    environment[FOLDER] = str(folder)
    environment.setdefault(LEAST, "0.2")
