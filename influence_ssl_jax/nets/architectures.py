"""Describe networks of this package as JSON, and build them again."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax

from influence_ssl_jax.configuration import CLASS, Plain
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.convnext import ConvNeXt
from influence_ssl_jax.nets.heads import Classifier, NormalisedProjector, Predictor, Projector, SelfSupervised
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
    NormalisedProjector,
    Predictor,
    Classifier,
)
"""The registry of backbones and heads that can be built from a description."""

DTYPE = "dtype"
"""The field with the type that layers compute in; it belongs to a computation and is not saved."""


def describe(module: nn.Module) -> Plain:
    """Describe a network of this package as JSON: class and fields.

    Raises:
        StructureError: If the network is not one of this package.

    Examples:
        `build` inverts `describe`.

        >>> from influence_ssl_jax.nets.architectures import build, describe
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> describe(Linear(2))
        {'class': 'Linear', 'features': 2}
        >>> build(describe(Linear(2))) == Linear(2)
        True
    """
    if type(module) not in ARCHITECTURES:
        raise StructureError(
            f"{type(module).__name__} is not a network of this package, so a file cannot say how to build it. Write a "
            "function that returns the encoder, and pass its name as package.module:function wherever an encoder is needed."
        )
    values = {name: getattr(module, name) for name in _fields(type(module)) if name != DTYPE}
    return {
        CLASS: type(module).__name__,
        **{name: describe(value) if isinstance(value, nn.Module) else _plain(value) for name, value in values.items()},
    }


def build(description: Plain) -> nn.Module:
    """Build a network from the description that `describe` returned.

    Raises:
        StructureError: If the description names an unknown class or field.
    """
    known = {each.__name__: each for each in ARCHITECTURES}
    name = description.get(CLASS) if isinstance(description, dict) else None
    if name not in known:
        raise StructureError(f"A file names the network {name!r}; known are {', '.join(known)}.")
    values = {field: value for field, value in description.items() if field != CLASS}
    unknown = values.keys() - set(_fields(known[name]))
    if unknown:
        raise StructureError(f"A file gives {name} the unknown fields {', '.join(sorted(unknown))}.")
    for field, value in values.items():
        _refuse_value(name, field, value, get_type_hints(known[name])[field])
    try:
        return known[name](**{field: _restore(value) for field, value in values.items()})
    except TypeError as error:
        raise StructureError(f"A file describes {name} wrongly: {error}.") from error


def computing_in(module: nn.Module, dtype: jax.typing.DTypeLike | None) -> nn.Module:
    """Return the network with computations in another type; parameters keep theirs.

    The type is that of the field `dtype`, also of modules that are fields of the network.

    Raises:
        StructureError: If the network has no such field and is not one of this package.
    """
    inner = {name: getattr(module, name) for name in _fields(type(module))}
    changed: dict[str, Any] = {
        name: computing_in(value, dtype) for name, value in inner.items() if isinstance(value, nn.Module)
    }
    if DTYPE in inner:
        changed[DTYPE] = dtype
    elif not changed and type(module) not in ARCHITECTURES:
        raise StructureError(
            f"{type(module).__name__} has no field dtype, so its layers cannot compute in another type. Add the field, or "
            "score with precision float32."
        )
    return module.clone(**changed)


def _fields(cls: type[nn.Module]) -> list[str]:
    """List the fields that a class adds to those of linen modules."""
    return [field.name for field in dataclasses.fields(cls) if field.name not in ("parent", "name")]


def _refuse_value(name: str, field: str, value: Plain, hint: Any) -> None:
    """Refuse a value that a field of a network cannot have.

    Raises:
        StructureError: If it is not one of its choices, or a number or text of another type.
    """
    choices = get_args(hint) if get_origin(hint) is Literal else (value,)
    kinds = {int: int, float: int | float, str: str, bool: bool}
    if value not in choices or not isinstance(value, kinds.get(hint, object)):
        what = f"one of {', '.join(map(repr, choices))}" if get_origin(hint) is Literal else f"a {hint.__name__}"
        raise StructureError(f"A file gives {name} the {field} {value!r}; it must be {what}.")


def _plain(value: Any) -> Plain:
    """Return a value as JSON can hold it."""
    return list(value) if isinstance(value, tuple) else value


def _restore(value: Plain) -> Any:
    """Undo `describe` and `_plain`."""
    if isinstance(value, dict):
        return build(value)
    return tuple(value) if isinstance(value, list) else value
