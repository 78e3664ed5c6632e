"""Turn settings into options of a command line, one sub-command for each entry of a registry."""

import dataclasses
import functools
import inspect
import operator
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro

from influence_ssl_jax.data import SOURCES, Source
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.ihvp import BACKENDS, Backend
from influence_ssl_jax.losses import MEASUREMENTS, Measurement
from influence_ssl_jax.train.settings import Pretrain, recipes

Settings = TypeVar("Settings")
NAMED = {each.__name__.lower(): each for each in BACKENDS}
"""Backends by the names that the command line gives them."""
REGISTRY = tyro.constructors.ConstructorRegistry()
"""What the command line makes of fields of settings, beyond numbers, texts and choices."""


@REGISTRY.primitive_rule
def _backend_by_name(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Backend] | None:
    """Read a backend within a backend (CG's preconditioner) by its name, with its default settings."""
    if info.type is not Backend:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(NAMED) + "}",
        instance_from_str=lambda words: NAMED[words[0]](),
        is_instance=lambda value: isinstance(value, Backend),
        str_from_instance=lambda backend: [type(backend).__name__.lower()],
        choices=tuple(NAMED),
    )


def parse(settings: type[Settings], arguments: Sequence[str], program: str, description: str) -> Settings:
    """Parse options into settings.

    Args:
        settings: A frozen dataclass; its fields are the options, its docstring explains them.
        arguments: The words after the command's name.
        program: The command as the help calls it.
        description: The text above the options in the help.

    Raises:
        SystemExit: Help was asked for, or an option is unknown or has no valid value.
        ValueError: The settings refuse a combination of values.
    """
    config = (tyro.conf.CascadeSubcommandArgs,)
    options: Any = options_of(settings)
    parsed = tyro.cli(options, prog=program, description=description, args=arguments, config=config, registry=REGISTRY)
    return settings(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)})


def options_of(settings: type[Settings]) -> type:
    """Make a dataclass of the same name and fields, annotated for the command line."""
    hints, fields = typing.get_type_hints(settings), dataclasses.fields(typing.cast(Any, settings))
    annotated = [(each.name, _annotated(hints[each.name], each.metadata), _copy(each)) for each in fields]
    made = dataclasses.make_dataclass(settings.__name__, annotated, frozen=True)
    made.__doc__ = settings.__doc__
    return made


class Choice(NamedTuple):
    """A class of settings that can be chosen by name.

    Attributes:
        settings: The class.
        text: What it is, or when to use it, in a sentence.
        default: Its values before options change them; those of the class if None.
    """

    settings: type
    text: str
    default: Any = None


def choices_of(hint: Any) -> dict[str, Choice]:
    """Return what can be chosen for a field of settings, by the names that the command line gives.

    An abstract class stands for every entry of its registry, a union for its members, and a pretraining run for every
    recipe. Empty for any other field.
    """
    if hint is Backend:
        return {name: Choice(each, each.when_to_use) for name, each in NAMED.items()}
    if hint is Pretrain:
        return {name.replace("_", "-"): _recipe(recipe) for name, recipe in recipes().items()}
    listed = {Source: SOURCES, Measurement: MEASUREMENTS}.get(hint) or typing.get_args(hint)
    if listed and all(dataclasses.is_dataclass(each) for each in listed):
        return {_hyphenated(each): Choice(each, _first_sentence(each)) for each in listed}
    return {}


def _annotated(hint: Any, metadata: Mapping[str, Any]) -> Any:
    if hint == Path | Encoder:  # an object can be given in Python alone
        hint = Path
    choices = choices_of(hint)
    if choices:
        hint = functools.reduce(operator.or_, (_subcommand(name, choice) for name, choice in choices.items()))
    if metadata.get("positional"):
        return Annotated[hint, tyro.conf.Positional]
    name = "" if metadata.get("inline") else metadata.get("name")
    return hint if name is None else Annotated[hint, tyro.conf.arg(name=name)]


def _subcommand(name: str, choice: Choice) -> Any:
    if choice.default is None:
        return Annotated[choice.settings, tyro.conf.subcommand(name)]
    named = tyro.conf.subcommand(name, default=choice.default, description=choice.text)
    return Annotated[tyro.conf.AvoidSubcommands[choice.settings], named]


def _recipe(recipe: Pretrain) -> Choice:
    """A recipe as a sub-command: its loss and optimiser are fixed, everything else can be changed."""
    loss, size = type(recipe.loss).__name__, f"{recipe.epochs} epochs in batches of {recipe.batch_size}"
    return Choice(Pretrain, f"{loss}, views {recipe.views}, {size}.", recipe)


def _hyphenated(each: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", each.__name__).lower()


def _first_sentence(each: type) -> str:
    """The first sentence of a class's docstring, on one line."""
    text = " ".join(inspect.cleandoc(each.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", text)[0].rstrip(".:") + "."


def _copy(field: dataclasses.Field) -> Any:
    """The field's default, as `make_dataclass` takes it."""
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field() if field.default is dataclasses.MISSING else dataclasses.field(default=field.default)
