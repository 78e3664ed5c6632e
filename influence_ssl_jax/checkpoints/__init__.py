"""Read encoders from files of weights that other programs wrote; `FORMATS` is the registry."""

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
"""Every format by name; the format of a file is the first one that recognises it."""


def read(path: str | Path, layout: str | None = None, choices: Choices | None = None) -> Imported:
    """Read an encoder from a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, without executing it.

    Args:
        path: The file.
        layout: Name of its format; None recognises it.
        choices: Settings that the file does not contain.

    Raises:
        CheckpointError: If the file is damaged, has an unknown format, or does not have the named one.
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
