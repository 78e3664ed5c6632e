"""Convert settings to plain JSON and back.

In this form they are recorded, compared and hashed.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from influence_ssl_jax.errors import InfluenceError

Plain = Any
"""A value that JSON can represent."""
Settings = TypeVar("Settings")

CLASS = "class"
"""The key under which a description names its dataclass, which `dataclasses.asdict` would leave out."""


COUNT = (1, 2**31 - 1)
"""The limits of a number of things: JAX counts in 32 bits."""
POSITIVE = (math.ulp(0.0), math.inf)
"""The limits of a number above 0."""


def check_numbers(settings: object, **limits: tuple[int | float, int | float]) -> None:
    """Check that numbers of settings are finite and within their limits.

    Args:
        settings: A dataclass.
        limits: The least and the greatest value of fields, by name. A tuple has them for each entry; None has none.

    Raises:
        ValueError: If one is not.

    Examples:
        >>> import math
        >>> from influence_ssl_jax.configuration import check_numbers
        >>> from influence_ssl_jax.losses import SimCLR
        >>> check_numbers(SimCLR(0.5), temperature=(1, math.inf))
        Traceback (most recent call last):
            ...
        ValueError: temperature is a finite number of at least 1, got 0.5.
    """
    for name, (least, most) in limits.items():
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is None or (least <= each <= most and (isinstance(each, int) or math.isfinite(each))):
                continue
            low = "" if least == -math.inf else " above 0" if least == POSITIVE[0] else f" of at least {least:g}"
            high = "" if most == math.inf else f"{' and' if low else ' of'} at most {most:.10g}"
            raise ValueError(f"{name} is a finite number{low}{high}, got {value}.")


def describe(settings: object) -> Plain:
    """Describe settings as JSON.

    A dataclass becomes `{"class": name, field: value, …}`, a path becomes text, a tuple becomes a list.

    Raises:
        TypeError: If JSON cannot represent a value: it would be recorded as an unreadable `repr`.

    Examples:
        >>> from influence_ssl_jax.configuration import describe, restore
        >>> from influence_ssl_jax.losses import SimCLR
        >>> describe(SimCLR(0.5))
        {'class': 'SimCLR', 'temperature': 0.5}
        >>> restore(describe(SimCLR(0.5)), [SimCLR])
        SimCLR(temperature=0.5)
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        fields = {field.name: describe(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {CLASS: type(settings).__name__, **fields}
    if isinstance(settings, Mapping):
        return {str(key): describe(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [describe(value) for value in settings]
    if isinstance(settings, Path):
        return str(settings)
    if settings is None or isinstance(settings, bool | int | float | str):
        return settings
    raise TypeError(f"settings are dataclasses, numbers, texts, paths and lists of them, got {type(settings).__name__}")


def restore(description: Plain, classes: Sequence[type[Settings]]) -> Settings:
    """Restore a dataclass from its description, if it is one of `classes`.

    Raises:
        InfluenceError: If the class is not among `classes`, or the description does not have its fields.
    """
    known = {cls.__name__: cls for cls in classes}
    name = description.get(CLASS) if isinstance(description, Mapping) else None
    if name not in known:
        raise InfluenceError(f"Cannot restore {name!r}: known are {', '.join(sorted(known))}.")
    values = {key: value for key, value in description.items() if key != CLASS}
    hints = typing.get_type_hints(known[name])
    unknown = values.keys() - hints.keys()
    if unknown:
        raise InfluenceError(f"Cannot restore {name}: it has no {', '.join(sorted(unknown))} in this version.")
    try:
        return known[name](**{key: _as_annotated(value, hints[key]) for key, value in values.items()})
    except TypeError as error:  # a field is missing, or its value is not allowed
        raise InfluenceError(f"Cannot restore {name}: {error}.") from error


def _as_annotated(value: Plain, hint: Any) -> Any:
    """Convert a value of JSON to the type of its field.

    It can be a path, a tuple or a nested dataclass.
    """
    choices = typing.get_args(hint) if _is_union(hint) else (hint,)
    if isinstance(value, Mapping):
        return restore(value, [each for choice in choices if isinstance(choice, type) for each in _subclasses(choice)])
    if isinstance(value, str) and Path in choices:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _subclasses(cls: type) -> Iterator[type]:
    """Iterate over a class and all its subclasses.

    A field of an abstract class has an instance of one of them.
    """
    yield cls
    for derived in cls.__subclasses__():
        yield from _subclasses(derived)


def _is_union(hint: Any) -> bool:
    """Test whether a type is a union."""
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def flatten(description: Plain, prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Iterate over nested settings as (dotted name, value).

    The value of a dataclass is its class.
    """
    if not isinstance(description, Mapping):
        yield prefix, description
        return
    if CLASS in description and prefix:
        yield prefix, description[CLASS]
    for key, value in description.items():
        if key != CLASS or not prefix:
            yield from flatten(value, f"{prefix}.{key}" if prefix else key)


def differences(old: Plain, new: Plain) -> list[str]:
    """List the settings in which two descriptions differ, each as `name: old → new`."""
    before, after, absent = dict(flatten(old)), dict(flatten(new)), "(absent)"
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, absent)} → {after.get(name, absent)}"
        for name in names
        if (name in before) != (name in after) or before[name] != after[name]
    ]


def fingerprint(description: Plain) -> str:
    """Compute the SHA-256 of a description.

    The order of its keys has no effect.
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
