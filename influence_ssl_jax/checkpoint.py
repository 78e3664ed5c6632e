"""Save trained networks as plain files: `<name>.npz` and `<name>.json`.

The first file holds the arrays, the second describes them. The description has the digest of the arrays and a checksum
of its own content, so a changed bit in either file is detected. Nothing is pickled: a file from elsewhere can be opened
without running code in it.
"""

import dataclasses
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten

from influence_ssl_jax.errors import InfluenceError, StructureError
from influence_ssl_jax.provenance import tree_digest
from influence_ssl_jax.store import DamagedError, read_sealed, write_sealed
from influence_ssl_jax.store.files import read_object, replacing
from influence_ssl_jax.types import PyTree

Storage: TypeAlias = Literal["float32", "float16"]
FORMAT = 2
SHOWN = 12
"""Number of differing arrays that an error names."""


class CheckpointError(InfluenceError):
    """A saved network that is absent or damaged, or has another architecture."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The two files of a saved network.

    Attributes:
        arrays: Path of the `.npz`.
        description: Path of the `.json`.
    """

    arrays: Path
    description: Path

    @classmethod
    def of(cls, path: str | Path) -> "Files":
        """Return the two files of a path with or without either suffix."""
        path = Path(path)
        stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
        return cls(stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".json"))


def save(path: str | Path, variables: PyTree, settings: Mapping, storage: Storage = "float32") -> Files:
    """Write variables and their description.

    With `storage="float16"`, parameters are rounded to 11 significant bits (relative error up to 2⁻¹¹ = 4.9e-4). Arrays
    under a `batch_stats` key stay float32, because running variances can leave the range of float16.

    Args:
        path: Path of the files; a suffix `.npz` or `.json` is ignored.
        variables: A tree of arrays.
        settings: The settings to rebuild the network, and any further facts; plain JSON.
        storage: The type in which parameters are stored.

    Raises:
        CheckpointError: If a value is outside the range of its stored type.
        FullDiskError: If the disk is full.

    Examples:
        `load` fills a tree of the same shapes.

        >>> import pathlib, tempfile, numpy as np
        >>> from influence_ssl_jax import checkpoint
        >>> variables = {"kernel": np.asarray([1.0, 2.0], np.float32)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = checkpoint.save(pathlib.Path(folder) / "net", variables, {"epochs": 3})
        ...     checkpoint.describe(files.arrays)["epochs"], checkpoint.load(files.arrays, variables)["kernel"].tolist()
        (3, [1.0, 2.0])
    """
    files = Files.of(path)
    arrays = {name: _cast(name, np.asarray(leaf), storage) for name, leaf in named(variables).items()}
    described = {"format": FORMAT, "digest": tree_digest(arrays), **settings}
    files.arrays.parent.mkdir(parents=True, exist_ok=True)
    with replacing(files.arrays) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_sealed(files.description, described, indent=1)
    return files


def describe(path: str | Path) -> dict:
    """Read the description in `<name>.json`.

    Raises:
        CheckpointError: If it is absent, damaged, or of another format.
    """
    file = Files.of(path).description
    try:
        stated = read_object(file).get("format")
        if stated != FORMAT:
            raise CheckpointError(f"{file} has format {stated}, this version reads format {FORMAT}; export it again.")
        return read_sealed(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"No saved network at {file}; check the path, or train one with `pretrain`.") from error
    except DamagedError as error:
        raise CheckpointError(f"{error} Copy it again, or train again.") from error


def load(path: str | Path, like: PyTree) -> PyTree:
    """Load the variables at `path` in the structure and types of `like`.

    Args:
        path: A path as for `save`.
        like: Arrays or `jax.ShapeDtypeStruct`s of the network to fill.

    Raises:
        CheckpointError: If a file is absent, truncated or not the described one, or its arrays do not have the names
            and shapes of `like`; the first differences are listed.
    """
    files, expected = Files.of(path), named(like)
    digest = describe(path).get("digest")
    arrays = _read(files.arrays, 2 * sum(math.prod(leaf.shape) * 8 for leaf in expected.values()) + 2**20)
    wrong = _differences(expected, arrays)
    if wrong:
        shown = [*wrong[:SHOWN], *([f"… and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else [])]
        raise CheckpointError(
            f"{files.arrays} belongs to another architecture; {len(wrong)} arrays differ:\n  " + "\n  ".join(shown)
        )
    if tree_digest(arrays) != digest:
        raise CheckpointError(f"{files.arrays} is not the file that {files.description} describes; copy both again.")
    structure = jax.tree.structure(like)
    return tree_unflatten(structure, [jax.numpy.asarray(arrays[name], leaf.dtype) for name, leaf in expected.items()])


def named(tree: PyTree) -> dict:
    """Return the leaves by name, in the order of `jax.tree.leaves`.

    A name is the path through the tree, joined by slashes.

    Raises:
        StructureError: If two leaves have the same name, such as those of `{"a/b": x, "a": {"b": y}}`.
    """
    leaves = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        name = keystr(path, simple=True, separator="/")
        if name in leaves:
            raise StructureError(f"Two arrays have the name {name}; rename one, without slashes.")
        leaves[name] = leaf
    return leaves


def _cast(name: str, array: np.ndarray, storage: Storage) -> np.ndarray:
    """Cast a floating-point array to its stored type.

    Raises:
        CheckpointError: If a value is outside the range of that type.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return array
    kind = np.dtype(np.float32 if "batch_stats" in name.split("/") else storage)
    with np.errstate(over="ignore"):
        stored = array.astype(kind)
    if (np.isinf(stored) & np.isfinite(array)).any():
        raise CheckpointError(
            f"{name} has values up to {np.abs(array).max():.3g}, outside the range of {kind}. Choose another storage."
        )
    return stored


def _read(file: Path, most: int) -> dict[str, np.ndarray]:
    """Read a file's arrays if they unpack to at most `most` bytes."""
    try:
        with zipfile.ZipFile(file) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > most:
            raise CheckpointError(
                f"{file} would unpack to {size:,} bytes, and the network that it should hold takes far fewer: it belongs to "
                "another architecture, or is not a saved network."
            )
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in sorted(archive.files)}
    except FileNotFoundError as error:
        raise CheckpointError(f"No saved network at {file}; check the path, or train one with `pretrain`.") from error
    except CheckpointError:
        raise
    except Exception as error:  # zip, zlib and numpy raise many types of errors for damaged files
        raise CheckpointError(f"{file} is truncated or damaged ({error}); copy it again, or train again.") from error


def _differences(expected: Mapping, arrays: Mapping) -> list[str]:
    """List the arrays whose name or shape differs from the expected one."""
    lines = [f"{name}: not in the file, expected {expected[name].shape}" for name in expected if name not in arrays]
    lines += [
        f"{name}: {arrays[name].shape} in the file, not in the network" for name in arrays if name not in expected
    ]
    lines += [
        f"{name}: {arrays[name].shape} in the file, expected {expected[name].shape}"
        for name in expected
        if name in arrays and arrays[name].shape != tuple(expected[name].shape)
    ]
    return sorted(lines)
