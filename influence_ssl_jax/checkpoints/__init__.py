"""Encoders out of other people's files of weights; one file a family of formats, the one list of formats here."""

from pathlib import Path

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.convnext import ConvNeXtNames
from influence_ssl_jax.checkpoints.layout import Choices, Format, Imported, WeightsFile
from influence_ssl_jax.checkpoints.resnet import (
    BARLOW_TWINS,
    DINO_RESNET,
    MOCO,
    RESNET_CIFAR,
    SWAV,
    TORCHVISION,
    VICREG,
)
from influence_ssl_jax.checkpoints.solo_learn import SoloLearn
from influence_ssl_jax.checkpoints.vit import DINO, DINOV2, DINOV3, MAE, TIMM

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        SoloLearn(),
        BARLOW_TWINS,
        VICREG,
        MOCO,
        SWAV,
        DINO_RESNET,
        TORCHVISION,
        RESNET_CIFAR,
        DINOV3,
        DINOV2,
        DINO,
        MAE,
        TIMM,
        ConvNeXtNames(),
    )
}
"""Every format by name; a file is that of the first one that recognises it."""


def read(path: str | Path, layout: str | None = None, choices: Choices | None = None) -> Imported:
    """Read an encoder out of a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, executing nothing that is in it.

    Args:
        path: The file.
        layout: The name of its format; recognised where None.
        choices: What the file does not say.

    Raises:
        CheckpointError: The file is damaged, of no known format or of several, or does not fit the one that is named.
    """
    file = WeightsFile.open(Path(path))
    if layout is None:
        layout = next((name for name, each in FORMATS.items() if each.recognises(file)), None)
    if layout not in FORMATS:
        known = "\n  ".join(f"{name}: {each.summary}" for name, each in FORMATS.items())
        what = f"There is no layout {layout!r}." if layout else f"Nothing in {path} says which layout it has."
        raise CheckpointError(f"{what} Name it with --as, one of\n  {known}")
    return FORMATS[layout].read(file, choices or Choices())


__all__ = ["FORMATS", "Choices", "Format", "Imported", "WeightsFile", "read"]
