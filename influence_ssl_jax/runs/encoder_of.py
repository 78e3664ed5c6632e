"""The encoder that a command names: a folder, a file of weights, or a function."""

import dataclasses
from pathlib import Path

from influence_ssl_jax import checkpoint, checkpoints
from influence_ssl_jax.configuration import restore
from influence_ssl_jax.data import ToInput
from influence_ssl_jax.encoder import FILE, Encoder
from influence_ssl_jax.train.export import load


def encoder_of(place: Path | Encoder) -> Encoder:
    """Load the encoder at a place; an encoder is returned as it is.

    Args:
        place: The folder of a `pretrain` run or of an imported encoder, or its `.npz`; a file of weights whose layout says
            all that is needed; or `package.module:function`, a function that returns an `Encoder`.

    Raises:
        CheckpointError: There is nothing, or it is damaged or of no known layout.
        InfluenceError: The function does not exist, or returns no encoder.
    """
    if isinstance(place, Encoder):
        return place
    if of_function(place):
        return Encoder.load(place)
    path = place / FILE if place.is_dir() else place
    saved = path.suffix in (".npz", ".json") or checkpoint.Files.of(path).description.exists()
    if not saved and not place.is_dir() and (place.is_file() or place.suffix):
        return checkpoints.read(place).encoder
    described = checkpoint.describe(path)
    if "encoder" in described:
        return Encoder.load(path)
    recorded = described.get("input")
    encoder = load(path).encoder(restore(recorded, [ToInput]) if recorded else None)
    return dataclasses.replace(encoder, notes={"classes": described.get("classes")})


def of_function(place: Path) -> bool:
    """Whether a place is no path but names a function: `package.module:function`."""
    return not place.exists() and ":" in str(place)


def absolute(place: Path) -> Path:
    """The place as seen from any working folder; the name of a function stays as it is."""
    return place if of_function(place) else place.absolute()
