"""Settings as plain JSON and back: what is recorded, compared and hashed."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from influence_ssl_jax.errors import InfluenceError

Plain = Any
"""What JSON can hold."""
Settings = TypeVar("Settings")

CLASS = "class"
"""The key under which a description names its dataclass; `dataclasses.asdict` would drop it."""


def describe(settings: object) -> Plain:
    """Settings as JSON: a dataclass becomes `{"class": name, field: value, …}`, a path text, a tuple a list.

    Raises:
        TypeError: A value that JSON cannot hold, so that nothing is recorded as an unreadable `repr`.
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
    """The dataclass that `describe` described, where its class is one of `classes`.

    Raises:
        InfluenceError: The class is not among `classes`, or its fields have changed since.
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
    except TypeError as error:  # a field is missing, or has a value that is no setting
        raise InfluenceError(f"Cannot restore {name}: {error}.") from error


def _as_annotated(value: Plain, hint: Any) -> Any:
    """Undo what JSON does to paths, tuples and nested dataclasses."""
    choices = typing.get_args(hint) if _is_union(hint) else (hint,)
    if isinstance(value, Mapping):
        return restore(value, [each for choice in choices if isinstance(choice, type) for each in _subclasses(choice)])
    if isinstance(value, str) and Path in choices:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _subclasses(cls: type) -> Iterator[type]:
    """A class and all that derive from it: a field of an abstract class holds one of these."""
    yield cls
    for derived in cls.__subclasses__():
        yield from _subclasses(derived)


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def flatten(description: Plain, prefix: str = "") -> Iterator[tuple[str, Plain]]:
    """Nested settings as (dotted name, value), in order; a dataclass itself has its class as value."""
    if not isinstance(description, Mapping):
        yield prefix, description
        return
    if CLASS in description and prefix:
        yield prefix, description[CLASS]
    for key, value in description.items():
        if key != CLASS or not prefix:
            yield from flatten(value, f"{prefix}.{key}" if prefix else key)


def differences(old: Plain, new: Plain) -> list[str]:
    """One line for each setting in which two descriptions differ: `name: old → new`."""
    before, after, absent = dict(flatten(old)), dict(flatten(new)), "(absent)"
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, absent)} → {after.get(name, absent)}"
        for name in names
        if (name in before) != (name in after) or before[name] != after[name]
    ]


def fingerprint(description: Plain) -> str:
    """SHA-256 of a description, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
