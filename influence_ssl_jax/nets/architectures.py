"""The networks that a file can name: what is saved of one, and how it is built again."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from influence_ssl_jax.configuration import CLASS, Plain
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.convnext import ConvNeXt
from influence_ssl_jax.nets.heads import Classifier, Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.resnet import ResNet
from influence_ssl_jax.nets.vit import VisionTransformer

ARCHITECTURES: tuple[type[nn.Module], ...] = (
    ResNet,
    VisionTransformer,
    ConvNeXt,
    Linear,
    SelfSupervised,
    Projector,
    Predictor,
    Classifier,
)
"""Backbones and heads that are rebuilt from their description: the one list."""

DTYPE = "dtype"
"""The field of what layers compute in, which belongs to a computation and not to a network."""


def describe(module: nn.Module) -> Plain:
    """Describe a network of this package as JSON: its class and the values of its fields.

    Raises:
        StructureError: The network is none of this package's.
    """
    if type(module) not in ARCHITECTURES:
        raise StructureError(
            f"{type(module).__name__} is no network of this package, so a file cannot say how to build it. Write a "
            "function that returns the encoder, and name it as package.module:function wherever an encoder is asked for."
        )
    values = {name: getattr(module, name) for name in _fields(type(module)) if name != DTYPE}
    return {
        CLASS: type(module).__name__,
        **{name: describe(value) if isinstance(value, nn.Module) else _plain(value) for name, value in values.items()},
    }


def build(description: Plain) -> nn.Module:
    """Build the network that `describe` described.

    Raises:
        StructureError: It names a class or a field that is not known.
    """
    known = {each.__name__: each for each in ARCHITECTURES}
    name = description.get(CLASS) if isinstance(description, dict) else None
    if name not in known:
        raise StructureError(f"A file names the network {name!r}; known are {', '.join(known)}.")
    values = {field: value for field, value in description.items() if field != CLASS}
    unknown = values.keys() - set(_fields(known[name]))
    if unknown:
        raise StructureError(f"A file gives {name} the fields {', '.join(sorted(unknown))}, which it has not.")
    try:
        return known[name](**{field: _restored(value) for field, value in values.items()})
    except TypeError as error:
        raise StructureError(f"A file describes {name} wrongly: {error}.") from error


def computing_in(module: nn.Module, dtype: jax.typing.DTypeLike | None) -> nn.Module:
    """Return the network whose layers compute in another type; parameters keep theirs.

    The type is that of its field `dtype`, and of those of the modules that are its fields.

    Raises:
        StructureError: It has no such field, and is none of this package's.
    """
    inner = {name: getattr(module, name) for name in _fields(type(module))}
    changed: dict[str, Any] = {
        name: computing_in(value, dtype) for name, value in inner.items() if isinstance(value, nn.Module)
    }
    if DTYPE in inner:
        changed[DTYPE] = dtype
    elif not changed and type(module) not in ARCHITECTURES:
        raise StructureError(
            f"{type(module).__name__} has no field dtype, so its layers cannot be told to compute in another type. Give it "
            "one, or score with precision float32."
        )
    return module.clone(**changed)


def _fields(cls: type[nn.Module]) -> list[str]:
    """Names of the fields that a class adds to those of every linen module."""
    return [field.name for field in dataclasses.fields(cls) if field.name not in ("parent", "name")]


def _plain(value: Any) -> Plain:
    return list(value) if isinstance(value, tuple) else value


def _restored(value: Plain) -> Any:
    if isinstance(value, dict):
        return build(value)
    return tuple(value) if isinstance(value, list) else value
