"""Set up JAX for the command line: compile cache, kernels, precision of products."""

import importlib.metadata
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
    try:
        home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in some containers
        return
    folder = Path(home) / "influence-ssl" / "jax" / platform.node()  # a program is made for the machine's own processor
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a home that cannot be written is no reason to stop
        return
    environment[FOLDER] = str(folder)
    environment.setdefault(LEAST, "0.2")


FLAG = "--xla_cpu_experimental_ynn_fusion_type"
UNDERSTOOD_BY = ("0.10.2",)
"""Versions of jaxlib that are known to have the flag; any other aborts the process on a flag that it does not know."""


def keep_convolutions_whole() -> bool:
    """Ask XLA not to fuse convolutions into YNNPACK calls; true where the choice is made.

    Measured with ResNet-18 on two cores (`benchmarks/convolutions.py`): a gradient in 0.71 of the time, a forward pass in
    0.77, because both cores are kept busy.

    Read by XLA when the first computation compiles, so it is called at the start of a program, and by the compiler for
    CPUs alone: accelerators do not see it. A choice that `XLA_FLAGS` already holds is left as it is.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or importlib.metadata.version("jaxlib") not in UNDERSTOOD_BY:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
    return True


VARIABLE = "JAX_DEFAULT_MATMUL_PRECISION"


def keep_float32(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let float32 mean float32 on an accelerator too; a choice that `JAX_DEFAULT_MATMUL_PRECISION` holds is left.

    Without it GPUs round the factors of products and convolutions to 10 bits (TF32), TPUs to 7 (`jax.lax.Precision`): far
    more than a certificate allows for, or a solve to 1e-5. On a CPU it changes no bit. `--precision bfloat16` is where
    speed is asked for.
    """
    environment.setdefault(VARIABLE, "highest")
