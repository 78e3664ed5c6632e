"""Record the origin of a result: command, versions, device, digest of parameters."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from influence_ssl_jax.types import PyTree

DECISIVE = ("influence-ssl-jax", "jax", "jaxlib", "flax", "numpy", "pillow")
"""Packages whose version can change a score; Pillow decodes and resizes images."""
RECORDED = (*DECISIVE, "optax", "orbax-checkpoint", "pyarrow", "scikit-learn", "scipy", "tensorflow-datasets")
"""Packages whose version is recorded, where they are installed."""


def versions(packages: tuple[str, ...] = RECORDED) -> dict[str, str]:
    """Return the version of Python and of each package that is installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def decisive(*further: str) -> dict[str, dict[str, Any]]:
    """Return the software and the device that can change a number.

    Of Python this is the minor version, of the device its platform and the arithmetic that is set.

    Args:
        *further: Packages beside DECISIVE.
    """
    here = device()
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "versions": {**versions((*DECISIVE, *further)), "python": python},
        "device": {name: here[name] for name in ("platform", "float64", "matmul_precision")},
    }


def command() -> list[str]:
    """Return the command line of `influence-ssl`; empty for another program."""
    program = Path(sys.argv[0])
    ours = program.name == "influence-ssl" or program.parts[-2:] == ("influence_ssl_jax", "__main__.py")
    return ["influence-ssl", *(word for word in sys.argv[1:] if word != "--debug")] if ours else []


def device() -> dict[str, Any]:
    """Return the accelerator of this process and its settings of compilation.

    This starts JAX.
    """
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "float64": bool(jax.config.read("jax_enable_x64")),
        "matmul_precision": jax.default_matmul_precision.value or "default",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def tree_digest(tree: PyTree) -> str:
    """Compute the SHA-256 of every leaf's path, type, shape and bits.

    Two trees have the same digest if and only if all of these are equal.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return arrays_digest((f"{jax.tree_util.keystr(path)} ", np.asarray(leaf)) for path, leaf in leaves)


def arrays_digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Compute the SHA-256 of names, types, shapes and bits of arrays.

    Examples:
        >>> from influence_ssl_jax.provenance import arrays_digest
        >>> arrays_digest([("a", np.zeros(2))]) == arrays_digest([("a", np.zeros((2, 1)))])
        False
    """
    total = hashlib.sha256()
    for name, array in arrays:
        total.update(f"{name}{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
