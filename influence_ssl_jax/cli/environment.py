"""Set up JAX for commands: compiled programs, convolutions, precision of products."""

import importlib.metadata
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

FOLDER, LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let JAX keep compiled programs for later runs.

    Runs with the same shapes then start at once. Call it before JAX is imported. The folder is
    `$XDG_CACHE_HOME/influence-ssl/jax/<host>` (`~/.cache/…`); only the user may read it, because a cached program is
    code. `JAX_COMPILATION_CACHE_DIR` sets another folder; if it is empty, no program is kept.

    Examples:
        >>> environment = {"JAX_COMPILATION_CACHE_DIR": ""}
        >>> keep_compiled_programs(environment)
        >>> environment  # the choice of the user
        {'JAX_COMPILATION_CACHE_DIR': ''}
    """
    if FOLDER in environment:
        return
    try:
        home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # the user has no home folder, as in some containers
        return
    folder = Path(home) / "influence-ssl" / "jax" / platform.node()  # programs are specific to the processor
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # the home folder cannot be written to; work without the cache
        return
    environment[FOLDER] = str(folder)
    environment.setdefault(LEAST, "0.2")


FLAG = "--xla_cpu_experimental_ynn_fusion_type"
UNDERSTOOD_BY = ("0.10.2",)
"""Versions of jaxlib that are known to have the flag; jaxlib aborts the process if it does not know a flag."""


def keep_convolutions_whole() -> bool:
    """Tell XLA not to fuse convolutions into calls of YNNPACK.

    Return whether the flag was set.

    Measured with ResNet-18 on two cores (`benchmarks/convolutions.py`): a gradient takes 0.71 of the time and a forward pass
    0.77, because both cores are busy.

    Call it at the start of a program: XLA reads the flag when it compiles the first computation. It affects only the
    compiler for CPUs. A value that is already in `XLA_FLAGS` is not changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or importlib.metadata.version("jaxlib") not in UNDERSTOOD_BY:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
    return True


VARIABLE = "JAX_DEFAULT_MATMUL_PRECISION"


def keep_float32(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let JAX multiply float32 numbers in full float32 on accelerators.

    By default GPUs round the factors of products and convolutions to 10 bits (TF32) and TPUs to 7 (`jax.lax.Precision`):
    too much for a certificate, or for a solve to 1e-5. On a CPU it changes no bit. A value that is already in
    `JAX_DEFAULT_MATMUL_PRECISION` is not changed. For speed, use `--precision bfloat16`.

    Examples:
        >>> environment = {}
        >>> keep_float32(environment)
        >>> environment
        {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    """
    environment.setdefault(VARIABLE, "highest")
