"""Read ConvNeXts with the names of their authors or of timm.

DINOv3's have the authors' names too.
"""

import dataclasses
import re
from typing import Literal

import numpy as np

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.layout import (
    IMAGENET,
    Choices,
    Format,
    Imported,
    Source,
    State,
    WeightsFile,
    describe_input,
    describe_place,
    fill,
    input_of,
    leaf_source,
    locate_only,
    normalisation,
    select_prefix,
    shapes_of,
    summarise,
    summarise_outside,
    transpose,
)
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.nets.convnext import ConvNeXt
from influence_ssl_jax.nets.network import Network

MARKERS = {"authors": "downsample_layers.0.0.weight", "timm": "stem.0.weight"}
"""The kernel of the stem, in each way of naming."""
DEPTHWISE = {
    "authors": r"stages\.(\d+)\.(\d+)\.dwconv\.weight",
    "timm": r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.weight",
}
BESIDE = {r"head\.(weight|bias|fc\.)": "classifier", r"norms\.3\.": "the last normalisation again"}


@dataclasses.dataclass(frozen=True)
class ConvNeXtNames(Format):
    """The format of a ConvNeXt.

    Attributes:
        name: Its name for `--as`.
        summary: Its description in a few words.
    """

    name: str = "convnext"
    summary: str = "ConvNeXt"

    @property
    def choices(self) -> frozenset[str]:
        """The choices that have an effect."""
        return frozenset()

    def recognises(self, file: WeightsFile) -> bool:
        """Test whether names in the file are those of a ConvNeXt."""
        return any(
            marker in file.group(group) and any(re.match(DEPTHWISE[kind], name) for name in file.group(group))
            for group in ("", "model", "state_dict")
            for kind, marker in MARKERS.items()
        )

    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read the network."""
        groups, prefixes = ("", "model", "state_dict"), ("", "module.", "backbone.")
        timm = any(f"{prefix}{MARKERS['timm']}" in file.group(group) for group in groups for prefix in prefixes)
        naming: Literal["authors", "timm"] = "timm" if timm else "authors"
        group, prefix, state = locate_only(file, groups, prefixes, MARKERS[naming], self.name)
        own = select_prefix(state, prefix)
        module = _module(own, naming)
        to_input = input_of(choices, 224, 256, "bicubic")
        mean, std = normalisation(choices, IMAGENET)
        name = f"ConvNeXt, widths {module.widths}, blocks {module.blocks}{', scaled branches' if module.scaled else ''}"
        shapes = dict(shapes_of(module, to_input))
        variables, left = fill(shapes, own, lambda path: _source(path[1:], naming), BESIDE, name)
        for leaf in ("weight", "bias"):
            again = own.get(f"norms.3.{leaf}")
            if again is not None and not np.array_equal(again.numpy(), own[f"norm.{leaf}"].numpy()):
                raise CheckpointError(f"norms.3.{leaf} differs from norm.{leaf}; such networks are not supported.")
        encoder = Encoder(Network(module, mean=mean, std=std), variables["params"], {}, to_input, file.path.stem)
        recognised = {
            "layout": f"{self.summary} under the names of {'timm' if timm else 'its authors'} (--as {self.name})",
            **describe_place(group, prefix, groups, prefixes),
            "network": name,
            "input": describe_input(to_input, mean, std),
        }
        outside = summarise_outside(key for key in state if not key.startswith(prefix))
        return Imported(encoder, recognised, {**summarise(left), **outside, **file.others(group)})


def _module(state: State, naming: Literal["authors", "timm"]) -> ConvNeXt:
    """Infer widths and blocks from names and shapes."""
    widths, blocks = {}, {}
    for name, tensor in state.items():
        if match := re.fullmatch(DEPTHWISE[naming], name):
            stage, number = int(match[1]), int(match[2])
            widths[stage] = tensor.shape[0]
            blocks[stage] = max(blocks.get(stage, 0), number + 1)
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise CheckpointError("The file lacks stages of a ConvNeXt.")
    scale = "stages.0.0.gamma" if naming == "authors" else "stages.0.blocks.0.gamma"
    order = sorted(blocks)
    return ConvNeXt(tuple(widths[s] for s in order), tuple(blocks[s] for s in order), scale in state)


def _source(path: tuple[str, ...], naming: Literal["authors", "timm"]) -> Source:
    """Return the torch name of a variable, and its conversion."""
    *layers, leaf = path
    first = layers[0]
    if match := re.fullmatch(r"reduce(\d+)_(conv|norm)", first):
        stage, conv = int(match[1]), match[2] == "conv"
        place = int(conv == (stage > 0))  # the stem normalises after its convolution, the others before
        if naming == "authors":
            return leaf_source(f"downsample_layers.{stage}.{place}", leaf)
        return leaf_source(f"stages.{stage}.downsample.{place}" if stage else f"stem.{place}", leaf)
    if match := re.fullmatch(r"stage(\d+)_(\d+)", first):
        block = f"stages.{match[1]}.{match[2]}" if naming == "authors" else f"stages.{match[1]}.blocks.{match[2]}"
        if leaf == "gamma":
            return f"{block}.gamma", np.asarray
        names = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"} if naming == "timm" else {}
        source = leaf_source(f"{block}.{names.get(layers[1], layers[1])}", leaf)
        return (source[0], _transpose_linear) if layers[1].startswith("pwconv") else source
    return leaf_source("head.norm" if naming == "timm" else "norm", leaf)


def _transpose_linear(kernel: np.ndarray) -> np.ndarray:
    """Transpose the kernel of a linear layer.

    In timm's small ConvNeXts it is that of a convolution of 1 × 1.
    """
    return transpose(kernel.reshape(kernel.shape[:2]) if kernel.shape[2:] == (1, 1) else kernel)
