"""Define data sets and load their examples.

Each source is one file; `SOURCES` is the registry.
"""

from influence_ssl_jax.errors import require

require("data")

from influence_ssl_jax.data.arrays import Arrays
from influence_ssl_jax.data.digits import Digits
from influence_ssl_jax.data.examples import (
    Example,
    OpenSource,
    Skipped,
    UnreadableExample,
    repeated_ids,
    require_classes,
)
from influence_ssl_jax.data.folder import Folder
from influence_ssl_jax.data.loader import Cached, LoadedBatch, batches, cache, epoch, resident
from influence_ssl_jax.data.parquet import Parquet
from influence_ssl_jax.data.shards import Shards
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.data.synthetic import Synthetic
from influence_ssl_jax.data.tfds import Tfds
from influence_ssl_jax.data.to_input import ToInput, depth_notes

SOURCES: tuple[type[Source], ...] = (Digits, Tfds, Folder, Parquet, Shards, Synthetic)
"""The registry of sources: those of the command line, of restored settings, and of the contract tests."""

__all__ = [
    "SOURCES",
    "Arrays",
    "Cached",
    "Digits",
    "Example",
    "Folder",
    "LoadedBatch",
    "OpenSource",
    "Parquet",
    "Shards",
    "Skipped",
    "Source",
    "Synthetic",
    "Tfds",
    "ToInput",
    "UnreadableExample",
    "batches",
    "cache",
    "depth_notes",
    "epoch",
    "repeated_ids",
    "require_classes",
    "resident",
]
