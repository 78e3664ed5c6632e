"""Data sets: sources, one file each, and how their examples become batches.

A source that is added here is known to the command line and to the contract tests.
"""

from typing import TypeAlias, get_args

from influence_ssl_jax.data.arrays import Arrays
from influence_ssl_jax.data.digits import Digits
from influence_ssl_jax.data.draw import epoch, resident
from influence_ssl_jax.data.folder import Folder
from influence_ssl_jax.data.loader import Cached, LoadedBatch, batches, cached
from influence_ssl_jax.data.source import Example, OpenSource, Skipped, Source, UnreadableExample, repeated_ids
from influence_ssl_jax.data.synthetic import Synthetic
from influence_ssl_jax.data.tfds import Tfds
from influence_ssl_jax.data.transform import ToInput

AnySource: TypeAlias = Digits | Tfds | Folder | Synthetic
"""What the command line offers: the one list of sources that can be described in words."""

SOURCES: tuple[type[Source], ...] = get_args(AnySource)

__all__ = [
    "SOURCES",
    "AnySource",
    "Arrays",
    "Cached",
    "Digits",
    "Example",
    "Folder",
    "LoadedBatch",
    "OpenSource",
    "Skipped",
    "Source",
    "Synthetic",
    "Tfds",
    "ToInput",
    "UnreadableExample",
    "batches",
    "cached",
    "epoch",
    "repeated_ids",
    "resident",
]
