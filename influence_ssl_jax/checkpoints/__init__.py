"""Read encoders from other programs' files of weights.

`FORMATS` is the registry.
"""

import dataclasses
from pathlib import Path

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.convnext import ConvNeXtNames
from influence_ssl_jax.checkpoints.layout import SHOWN, Choices, Format, Imported, WeightsFile, describe_names
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
    """Read an encoder from a file of weights without executing it.

    Its name ends in `.pth`, `.pt`, `.ckpt` or `.safetensors`.

    Args:
        path: The file.
        layout: Name of its format; None recognises it.
        choices: Settings that the file does not contain.

    Raises:
        CheckpointError: If the file is damaged, has an unknown format, or does not have the named one.

    Examples:
        A file with zeros for the weights of a ConvNeXt of one block; the reader infers the network from names and
        shapes.

        >>> import json, math, pathlib, struct, tempfile
        >>> from influence_ssl_jax import checkpoints
        >>> weights = {
        ...     "downsample_layers.0.0": [2, 3, 4, 4],
        ...     "downsample_layers.0.1": [2],
        ...     "stages.0.0.dwconv": [2, 1, 7, 7],
        ...     "stages.0.0.norm": [2],
        ...     "stages.0.0.pwconv1": [8, 2],
        ...     "stages.0.0.pwconv2": [2, 8],
        ...     "norm": [2],
        ... }
        >>> header, size = {}, 0
        >>> for layer, shape in weights.items():
        ...     for name, axes in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
        ...         first, size = size, size + 4 * math.prod(axes)
        ...         header[name] = {"dtype": "F32", "shape": axes, "data_offsets": [first, size]}
        >>> text = json.dumps(header).encode()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     count = path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
        ...     imported = checkpoints.read(path)
        >>> imported.recognised["network"]
        'ConvNeXt, widths (2,), blocks (1,)'
        >>> imported.encoder.sizes() == (size // 4, size // 4)
        True
    """
    file = WeightsFile.open(Path(path))
    if layout is None:
        layout = next((name for name, each in FORMATS.items() if each.recognises(file)), None)
    if layout not in FORMATS:
        known = "\n  ".join(f"{name}: {each.summary}" for name, each in FORMATS.items())
        what = f"There is no layout {layout!r}." if layout else f"Nothing in {path} says which layout it has."
        raise CheckpointError(
            f"{what} It holds {describe_names(file)}.{_unreadable(file)} Name it with --as, one of\n  {known}"
        )
    choices = choices or Choices()
    for field in dataclasses.fields(Choices):
        chosen = getattr(choices, field.name) != field.default
        if chosen and field.name not in FORMATS[layout].choices | {"size", "mean", "std"}:
            raise CheckpointError(f"--{field.name} has no effect on files of the layout {layout}; leave it out.")
    try:
        return FORMATS[layout].read(file, choices)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_unreadable(file)}") from error


def _unreadable(file: WeightsFile) -> str:
    """Return a sentence on unreadable arrays, if there are any."""
    unreadable = [f"{name} ({kind})" for name, kind in file.unreadable().items()]
    if not unreadable:
        return ""
    more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    return f" Arrays of unknown types are not read: {', '.join(unreadable[:SHOWN])}{more}."


__all__ = ["FORMATS", "Choices", "Format", "Imported", "WeightsFile", "read"]
