"""Read vision transformers as DINO, DINOv2, DINOv3, MAE and timm save them."""

import dataclasses
import math
import re
from collections.abc import Callable
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
)
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.vit import VisionTransformer

MARKER = "patch_embed.proj.weight"
"""An array that every vision transformer has."""
REGISTERS = ("register_tokens", "storage_tokens", "reg_token")
"""Names of the registers."""
BESIDE = {
    r"mask_token": "token of masked patches, read only in pretraining",
    r"decoder_": "decoder, read only in pretraining",
    r"decoder\.": "decoder, read only in pretraining",
    r"(head|fc|classifier)\.": "classifier",
    r"(dino_head|ibot_head)\.": "head of pretraining",
    r"rope_embed\.periods": "periods of the rotation, a setting of the network",
    r"blocks\.\d+\.attn\.qkv\.bias_mask": "mask of the bias, a setting of the network",
    r"local_cls_norm\.": "normalisation of local crops, read only in pretraining",
}
"""Arrays beside a transformer that no representation reads, and their descriptions."""
PER_HEAD = 64
"""Channels of a head if neither the user nor the file says the number of heads.

All published networks have this number except those of `OTHER_WIDTHS` and the largest DINOv3 (128), whose periods tell it.
"""
OTHER_WIDTHS = (1152, 1280, 1408, 1664)
"""Widths of SO-400M, ViT-H, ViT-g and ViT-G, which have 16 heads."""


@dataclasses.dataclass(frozen=True)
class Transformer(Format):
    """The format of a vision transformer.

    Attributes:
        name: Its name for `--as`.
        summary: Its description in a few words.
        groups: Entries of the file that can hold the network.
        prefixes: Prefixes that its names can have.
        recognised_by: Recognises the layout from the arrays and the name of their entry; None if the layout must be
            named.
        epsilon: ε of its LayerNorm, which no file contains.
        offset: Offset of the interpolation of positions; see `VisionTransformer`.
        antialias: Whether the interpolation of positions smooths.
        shorter: Length in pixels of the shorter side before the crop of the centre, at size 224.
        parts: Parts that networks of this layout can have: registers, LayerScale, SwiGLU, rotary positions, patches
            averaged. In another layout the same arrays have another meaning.
    """

    name: str
    summary: str
    groups: tuple[str, ...]
    prefixes: tuple[str, ...]
    recognised_by: Callable[[State, str], bool] | None
    epsilon: float = 1e-6
    offset: float = 0.0
    antialias: bool = False
    shorter: int = 256
    parts: frozenset[str] = frozenset()

    @property
    def choices(self) -> frozenset[str]:
        """The choices that have an effect."""
        return frozenset({"heads", *({"part"} if "teacher" in self.groups else ())})

    def recognises(self, file: WeightsFile) -> bool:
        """Test whether names in the file belong to this format only."""
        if self.recognised_by is None:
            return False
        for group in self.groups:
            state = file.group(group)
            for prefix in self.prefixes:
                if f"{prefix}{MARKER}" in state:
                    return self.recognised_by(select_prefix(state, prefix), group)
        return False

    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read the transformer."""
        pair = {"teacher", "student"}
        groups = [name for name in self.groups if name not in pair - {choices.part}]
        group, prefix, state = locate_only(file, groups, self.prefixes, MARKER, self.name)
        own = {_drop_chunk(name): tensor for name, tensor in select_prefix(state, prefix).items()}
        module, assumed = self._module(own, choices)
        size = choices.size or (224 if 224 % module.patch == 0 else module.patch * max(1, 224 // module.patch))
        to_input = input_of(dataclasses.replace(choices, size=size), 224, self.shorter, "bicubic")
        mean, std = normalisation(choices, IMAGENET)
        shapes = dict(shapes_of(module, to_input))
        variables, left = fill(shapes, own, lambda path: _source(path[1:], own, module), BESIDE, _describe(module))
        encoder = Encoder(Network(module, mean=mean, std=std), variables["params"], {}, to_input, file.path.stem)
        recognised = {
            "layout": f"{self.summary} (--as {self.name})" + (f", {group}" if group in pair else ""),
            **describe_place(group, prefix, groups, self.prefixes),
            "network": _describe(module) + assumed,
            "positions": _positions(module),
            "output": "normalised class token" if module.output == "class" else "normalised mean of the patches",
            "input": describe_input(to_input, mean, std),
        }
        outside = summarise_outside(name for name in state if not name.startswith(prefix))
        return Imported(encoder, recognised, {**summarise(left), **outside, **file.others(group)})

    def _module(self, state: State, choices: Choices) -> tuple[VisionTransformer, str]:
        """Infer the architecture from names and shapes, with assumptions in words."""
        shape = state[MARKER].shape
        if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
            raise CheckpointError(f"{MARKER} must be [width, 3, patch, patch], of square patches; got {list(shape)}.")
        width, _, patch, _ = shape
        numbers = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
        if "cls_token" not in state or not numbers:
            raise CheckpointError(
                f"The layout {self.name} has a class token and blocks, which are not both in the file."
            )
        heads, periods, assumed = self._heads(state, width, choices)
        registers = next((_count(state, name) for name in REGISTERS if name in state), 0)
        gated, fused = "blocks.0.mlp.w3.weight" in state, "blocks.0.mlp.w12.weight" in state
        first = state.get("blocks.0.mlp.w12.weight" if fused else f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight")
        if first is None:
            raise CheckpointError(
                f"The layout {self.name} has arrays blocks.0.mlp.fc1 or .w1, which are not in the file."
            )
        grid, positions = (0, "rotary") if periods else _grid(state)
        old = self.name == "dinov2" and not registers  # the first DINOv2 models interpolate as DINO does
        module = VisionTransformer(
            patch,
            width,
            heads,
            max(numbers) + 1,
            first.shape[0] // (2 if fused else 1),
            grid,
            positions,
            registers,
            feed_forward="swiglu" if gated else "mlp",
            qkv_bias=_qkv_bias(state),
            layer_scale="blocks.0.ls1.gamma" in state,
            epsilon=self.epsilon,
            output="mean" if "fc_norm.weight" in state else "class",
            periods=periods,
            offset=0.1 if old else self.offset,
            antialias=bool(registers) if self.name == "dinov2" else self.antialias,
        )
        self._refuse_parts(module)
        return module, assumed

    def _refuse_parts(self, module: VisionTransformer) -> None:
        """Refuse parts that this layout does not have, and missing positions."""
        there = {
            "registers": module.registers > 0,
            "LayerScale": module.layer_scale,
            "SwiGLU": module.feed_forward == "swiglu",
            "rotary positions": module.positions == "rotary",
            "patches averaged": module.output == "mean",
            "positions of patches alone": module.positions == "patches",
        }
        strange = [part for part, is_there in there.items() if is_there and part not in self.parts]
        if strange:
            raise CheckpointError(
                f"Networks of the layout {self.name} have no {', '.join(strange)}, and this file does; name its layout "
                "with --as."
            )
        if "rotary positions" in self.parts and not there["rotary positions"]:
            raise CheckpointError(f"Networks of the layout {self.name} have rotary positions, and this file has none.")

    def _heads(self, state: State, width: int, choices: Choices) -> tuple[int, tuple[float, ...], str]:
        """Return the number of heads, rotation periods, and assumptions in words."""
        periods: tuple[float, ...] = ()
        if "rope_embed.periods" in state:
            periods = tuple(float(value) for value in state["rope_embed.periods"].numpy())
            heads = width // (4 * len(periods)) if periods else 0
            if not heads or heads * 4 * len(periods) != width:
                raise CheckpointError(
                    f"rope_embed.periods has {len(periods)} periods, 4 channels of a head for each; this does not divide "
                    f"the width {width}."
                )
            if choices.heads not in (None, heads):
                raise CheckpointError(f"The rotation has {heads} heads, got --heads {choices.heads}; leave it out.")
            return heads, periods, ""
        if choices.heads is not None:
            return choices.heads, periods, ""
        if width % PER_HEAD or width in OTHER_WIDTHS:
            why = f"published networks of the width {width} have fewer than one for each {PER_HEAD} channels"
            raise CheckpointError(
                "A file does not say how many attention heads there are, and "
                f"{f'the width {width} is not a multiple of {PER_HEAD}' if width % PER_HEAD else why}; pass --heads"
                f"{'' if width % PER_HEAD else ' (ViT-H, ViT-g, ViT-G and SO-400M have 16)'}."
            )
        return (
            width // PER_HEAD,
            periods,
            f" ({PER_HEAD} channels per head are assumed; --heads sets another number of heads)",
        )


def _grid(state: State) -> tuple[int, Literal["with_class", "patches"]]:
    """Infer the side of the square grid of stored positions.

    Return also which tokens have a position.
    """
    if "pos_embed" not in state:
        raise CheckpointError("The file has neither pos_embed nor rope_embed.periods: its positions are not known.")
    count = _count(state, "pos_embed")
    for own in (1, 0):
        side = math.isqrt(max(0, count - own))
        if side and side * side == count - own:
            return side, "with_class" if own else "patches"
    raise CheckpointError(
        f"pos_embed has {count} positions, neither a square number nor one more; such networks are not supported."
    )


def _count(state: State, name: str) -> int:
    """Return the number of tokens in an array [1, tokens, width]."""
    shape = state[name].shape
    if len(shape) != 3:
        raise CheckpointError(f"{name} must be [1, tokens, width], got {list(shape)}.")
    return shape[1]


def _qkv_bias(state: State) -> Literal["full", "no_key", "none"]:
    """Return which of queries, keys and values have a bias.

    Raises:
        CheckpointError: If a mask removes more or less than the bias of the keys.
    """
    if "blocks.0.attn.qkv.bias" not in state:
        return "none"
    if "blocks.0.attn.qkv.bias_mask" not in state:
        return "full"
    for name in state:
        if name.endswith("bias_mask"):
            query, key, value = np.split(state[name].numpy().astype(np.float64), 3)
            if not ((query == 1).all() and (key == 0).all() and (value == 1).all()):
                raise CheckpointError(
                    f"{name} masks more or less than the bias of the keys; such networks are not supported."
                )
    return "no_key"


def _drop_chunk(name: str) -> str:
    """Remove the chunk's number from a block's name (`blocks.0.3.` → `blocks.3.`)."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def _source(path: tuple[str, ...], state: State, module: VisionTransformer) -> Source:
    """Return the torch name of a transformer's variable, and its conversion."""
    if path == ("registers",):
        return next((name for name in REGISTERS if name in state), REGISTERS[0]), np.asarray
    if len(path) == 1:
        return path[0], np.asarray
    *layers, leaf = path
    layers = [re.sub(r"blocks_(\d+)", r"blocks.\1", layer) for layer in layers]
    name = ".".join(layers)
    third, hidden = module.width, module.hidden
    if leaf == "query_bias":
        return f"{name}.qkv.bias", lambda bias: bias[:third]
    if leaf == "value_bias":
        return f"{name}.qkv.bias", lambda bias: bias[2 * third :]
    if name.endswith(("mlp.w1", "mlp.w2")) and f"{name[:-2]}w12.weight" in state:
        fused, convert = leaf_source(f"{name[:-2]}w12", leaf)
        if name.endswith("w1"):
            return fused, lambda array: convert(array[:hidden])
        return fused, lambda array: convert(array[hidden:])
    if name == "patch_embed":
        name = "patch_embed.proj"
    if name == "norm" and module.output == "mean":
        name = "fc_norm"
    return leaf_source(name, leaf)


def _describe(module: VisionTransformer) -> str:
    """Describe a transformer in words."""
    extras = [
        f"{module.registers} registers" if module.registers else "",
        "LayerScale" if module.layer_scale else "",
        "SwiGLU" if module.feed_forward == "swiglu" else "",
    ]
    added = "".join(f", {extra}" for extra in extras if extra)
    return (
        f"ViT, patch {module.patch}, width {module.width}, {module.depth} blocks, {module.heads} heads, "
        f"hidden {module.hidden}{added}, ε {module.epsilon:g}"
    )


def _positions(module: VisionTransformer) -> str:
    """Describe the positions of a transformer in words."""
    if module.positions == "rotary":
        return f"rotary, {len(module.periods)} periods"
    return (
        f"stored for {module.grid * module.patch} pixels ({module.grid}×{module.grid} patches); other sizes bicubic, offset "
        f"{module.offset:g}, {'with' if module.antialias else 'without'} antialiasing"
    )


def _any(names: State, *starts: str) -> bool:
    """Test whether a name has one of the starts."""
    return any(name.startswith(starts) for name in names)


PREFIXES = ("", "module.", "backbone.", "module.backbone.")
DINO = Transformer(
    "dino",
    "DINO's ViT",
    ("teacher", "student", "", "state_dict"),
    PREFIXES[::-1],
    lambda state, group: group in ("teacher", "student") and not _any(state, "rope_embed.", "blocks.0.ls1."),
    offset=0.1,
)
DINOV2 = Transformer(
    "dinov2",
    "DINOv2's ViT",
    ("", "teacher", "model"),
    PREFIXES,
    lambda state, _: (
        "mask_token" in state and "blocks.0.ls1.gamma" in {_drop_chunk(n) for n in state} and "pos_embed" in state
    ),
    parts=frozenset({"registers", "LayerScale", "SwiGLU"}),
)
DINOV3 = Transformer(
    "dinov3",
    "DINOv3's ViT",
    ("", "teacher", "model"),
    PREFIXES,
    lambda state, _: "rope_embed.periods" in state,
    epsilon=1e-5,
    parts=frozenset({"registers", "LayerScale", "SwiGLU", "rotary positions"}),
)
MAE = Transformer(
    "mae",
    "MAE's ViT",
    ("model", ""),
    PREFIXES,
    lambda state, _: _any(state, "decoder_embed.", "decoder_blocks."),
    parts=frozenset({"patches averaged"}),
)
TIMM = Transformer(
    "timm",
    "timm's ViT",
    ("", "state_dict", "model"),
    PREFIXES,
    None,
    antialias=True,
    shorter=248,
    parts=frozenset({"registers", "LayerScale", "patches averaged", "positions of patches alone"}),
)
