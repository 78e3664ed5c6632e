"""Weights trained in torch: state dicts of torchvision's and solo-learn's layout as flax variables."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from influence_ssl_jax.nets.heads import SelfSupervised
from influence_ssl_jax.types import PyTree

_LAYER = re.compile(r"layer(\d)\.(\d)\.(.+)")
_SHORTCUT = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_bn"}


def variables(
    state: Mapping[str, np.ndarray],
    module: SelfSupervised,
    image_shape: tuple[int, int, int],
    method: str = "__call__",
) -> PyTree:
    """The variables of `module` out of a state dict with `backbone.…`, `projector.…` and `predictor.…`.

    Whatever else the checkpoint holds (online classifier, momentum networks, `num_batches_tracked`) is left out. BYOL's
    target network is had by cutting `momentum_` off its names first.

    Args:
        state: torch's arrays by name.
        module: The network to fill.
        image_shape: Height, width and channels of its images.
        method: Only the parts that this method passes through are filled: `encode` for a lone backbone.

    Returns:
        `{"params": …, "batch_stats": …}`, float32.

    Raises:
        ValueError: Arrays are missing, superfluous, or of another shape.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(lambda images: module.init(jax.random.key(0), images, train=False, method=method), images)
    leaves: dict[tuple[str, ...], Any] = flatten_dict(expected)
    wanted = {path: leaf.shape for path, leaf in leaves.items()}
    parts = {path[1] for path in wanted}
    converted = {path: array for path, array in _converted(state) if path[1] in parts}
    given = {path: array.shape for path, array in converted.items()}
    wrong = [
        f"{'/'.join(path)}: expected {wanted.get(path, 'nothing')}, got {given.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | given.keys())
        if wanted.get(path) != given.get(path)
    ]
    if wrong:
        raise ValueError(
            f"The weights do not fit this architecture in {len(wrong)} arrays: {'; '.join(wrong[:5])}"
            f"{'; …' if len(wrong) > 5 else ''}. Choose the widths and heads that they were trained with."
        )
    return unflatten_dict({path: jnp.asarray(array, jnp.float32) for path, array in converted.items()})


def lone_backbone(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of torchvision's ResNet under the names that `variables` reads, without its classifier `fc`."""
    return {f"backbone.{name}": array for name, array in state.items() if not name.startswith("fc.")}


def _converted(state: Mapping[str, np.ndarray]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every array under its flax path, in flax's layout."""
    linear = {part: _linear_layers(state, part) for part in ("projector", "predictor")}
    for name, array in state.items():
        part, _, rest = name.partition(".")
        if rest.endswith("num_batches_tracked") or part not in ("backbone", *linear):
            continue
        layer, _, leaf = rest.rpartition(".")
        path = _backbone_path(layer) if part == "backbone" else _head_path(part, layer, linear[part])
        if leaf in ("running_mean", "running_var"):
            yield ("batch_stats", part, *path, leaf.removeprefix("running_")), array
        else:
            yield ("params", part, *path, _leaf(leaf, array)), _layout(array)


def _leaf(leaf: str, array: np.ndarray) -> str:
    if leaf == "bias":
        return "bias"
    return "scale" if array.ndim == 1 else "kernel"


def _layout(array: np.ndarray) -> np.ndarray:
    """Torch has [out, in] and [out, in, height, width]; flax has [in, out] and [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _backbone_path(layer: str) -> tuple[str, ...]:
    match = _LAYER.fullmatch(layer)
    if match is None:
        return (layer,)
    stage, block, rest = match.groups()
    return f"layer{stage}_{block}", _SHORTCUT.get(rest, rest)


def _linear_layers(state: Mapping[str, np.ndarray], part: str) -> list[int]:
    """Positions of the linear layers in a torch `Sequential`."""
    shapes = {name: array.ndim for name, array in state.items() if re.fullmatch(rf"{part}\.\d+\.weight", name)}
    return sorted(int(name.split(".")[1]) for name, ndim in shapes.items() if ndim == 2)


def _head_path(part: str, layer: str, linear: list[int]) -> tuple[str, ...]:
    """`Sequential` positions as names: the last linear layer is `output`, a BatchNorm belongs to the one before it."""
    position = int(layer)
    before = [index for index in linear if index <= position]
    if position == linear[-1]:
        name = "output"
    else:
        name = f"{'dense' if position in linear else 'bn'}{len(before) - 1}"
    return ("head", name) if part == "predictor" else (name,)
