"""Data sets: sources, one file each, and how their examples become batches.

A source that is added here is known to the command line and to the contract tests.
"""

from influence_ssl_jax.errors import require

require("data")

from influence_ssl_jax.data.arrays import Arrays
from influence_ssl_jax.data.digits import Digits
from influence_ssl_jax.data.folder import Folder
from influence_ssl_jax.data.loader import Cached, LoadedBatch, batches, cached, epoch, resident
from influence_ssl_jax.data.parquet import Parquet
from influence_ssl_jax.data.shards import Shards
from influence_ssl_jax.data.source import (
    Example,
    OpenSource,
    Skipped,
    Source,
    UnreadableExample,
    repeated_ids,
    require_classes,
)
from influence_ssl_jax.data.synthetic import Synthetic
from influence_ssl_jax.data.tfds import Tfds
from influence_ssl_jax.data.transform import ToInput, depth_notes

SOURCES: tuple[type[Source], ...] = (Digits, Tfds, Folder, Parquet, Shards, Synthetic)
"""What the command line offers: the one list of sources that can be described in words."""

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
    "cached",
    "depth_notes",
    "epoch",
    "repeated_ids",
    "require_classes",
    "resident",
]
