"""Keep a fitted backend on disk for resumed runs.

Such a run neither fits again nor mixes two fits.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.provenance import arrays_digest
from influence_ssl_jax.store.files import DamagedError, read_sealed, write_atomically, write_sealed
from influence_ssl_jax.types import PyTree

ARRAYS, DESCRIPTION = "fitted.npz", "fitted.json"
_log = logging.getLogger(__name__)


def save_fitted(folder: Path, state: PyTree, owner: str, notes: Plain = None) -> None:
    """Write a fitted state with the fingerprint of its run.

    Args:
        folder: The folder of the run.
        state: Any tree of arrays; PRNG keys may be among them.
        owner: Fingerprint of everything that the state depends on.
        notes: What else was decided when it was fitted; plain JSON.

    Raises:
        FullDiskError: The disk is full.
    """
    arrays = [_words(leaf) for leaf in jax.tree.leaves(state)]
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"{number:05d}": array for number, array in enumerate(arrays)})
    checksum = write_atomically(folder / ARRAYS, buffer.getvalue())
    write_sealed(folder / DESCRIPTION, {"owner": owner, "sha256": checksum, "notes": notes})


def read_notes(folder: Path, owner: str) -> Plain:
    """Return what else was decided when a state was fitted.

    None if that is absent, damaged or of another owner.

    Args:
        folder: The folder of the run.
        owner: Fingerprint of everything that the state depends on.
    """
    try:
        described = read_sealed(folder / DESCRIPTION)
    except (FileNotFoundError, DamagedError):
        return None
    return described.get("notes") if described.get("owner") == owner else None


def load_fitted(
    folder: Path,
    leaves: Sequence[jax.ShapeDtypeStruct],
    structure: Any,
    owner: str,
    place: Callable[[np.ndarray], jax.Array | np.ndarray] = jnp.asarray,
) -> tuple[PyTree, Plain] | None:
    """Read the state and notes of `save_fitted`, or None.

    It is None if they are absent, damaged or of another owner.

    Args:
        folder: The folder of the run.
        leaves: Shapes and types of the state's arrays.
        structure: The tree that holds them, a `jax.tree_util.PyTreeDef`.
        owner: Fingerprint of everything that the state depends on.
        place: Where the arrays are put.
    """
    try:
        described = read_sealed(folder / DESCRIPTION)
        content = (folder / ARRAYS).read_bytes()
    except FileNotFoundError:
        return None
    except DamagedError as error:
        _log.warning("%s The curvature is fitted again.", error)
        return None
    if described.get("owner") != owner or hashlib.sha256(content).hexdigest() != described.get("sha256"):
        _log.warning("%s is damaged or of another run; the curvature is fitted again", folder / ARRAYS)
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = [archive[name] for name in sorted(archive.files)]
    state = jax.tree.unflatten(structure, [_restore(*each, place) for each in zip(arrays, leaves, strict=True)])
    return state, described["notes"]


def digest_of(state: PyTree) -> str:
    """Return a hash of every bit of a state: 32 hexadecimal digits.

    >>> digest_of({"a": jnp.zeros(2)}) == digest_of({"a": jnp.zeros(3)})
    False
    """
    return arrays_digest(("", _words(leaf)) for leaf in jax.tree.leaves(state))[:32]


def _words(leaf: jax.Array) -> np.ndarray:
    """Return an array, or a PRNG key's words, as NumPy's."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _restore(
    array: np.ndarray, like: jax.ShapeDtypeStruct, place: Callable[[np.ndarray], jax.Array | np.ndarray]
) -> jax.Array | np.ndarray:
    """Return an array, or a PRNG key, of the expected type.

    It is put in its place.
    """
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array))
    if array.dtype.kind == "V" and array.dtype.itemsize == like.dtype.itemsize:
        array = array.view(like.dtype)  # NumPy reads types that it does not know, such as bfloat16, as plain bytes
    if array.shape != like.shape or array.dtype != like.dtype:
        raise ValueError(f"a fitted array has {array.dtype}{array.shape}, expected {like.dtype}{like.shape}")
    return place(array)


def _is_key(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Return whether a leaf holds PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
