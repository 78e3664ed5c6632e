"""Turn settings into options of a command line, one sub-command for each entry of a registry."""

import dataclasses
import functools
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from influence_ssl_jax.ihvp import BACKENDS
from influence_ssl_jax.runs.settings import AnyBackend
from influence_ssl_jax.train.settings import RECIPES, Pretrain

Settings = TypeVar("Settings")


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
    parsed = tyro.cli(options, prog=program, description=description, args=arguments, config=config)
    return settings(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)})


def options_of(settings: type[Settings]) -> type:
    """Make a dataclass of the same name and fields, annotated for the command line."""
    hints, fields = typing.get_type_hints(settings), dataclasses.fields(typing.cast(Any, settings))
    annotated = [(each.name, _annotated(hints[each.name], each.metadata), _copy(each)) for each in fields]
    made = dataclasses.make_dataclass(settings.__name__, annotated, frozen=True)
    made.__doc__ = settings.__doc__
    return made


def _annotated(hint: Any, metadata: Mapping[str, Any]) -> Any:
    if hint == AnyBackend:
        named = (Annotated[each, tyro.conf.subcommand(each.__name__.lower())] for each in BACKENDS)
        hint = functools.reduce(operator.or_, named)
    elif hint is Pretrain:
        hint = functools.reduce(operator.or_, map(_recipe, RECIPES))
    if metadata.get("positional"):
        return Annotated[hint, tyro.conf.Positional]
    name = "" if metadata.get("inline") else metadata.get("name")
    return hint if name is None else Annotated[hint, tyro.conf.arg(name=name)]


def _recipe(name: str) -> Any:
    """A recipe as a sub-command: its loss and optimiser are fixed, everything else can be changed."""
    recipe = RECIPES[name]
    loss, size = type(recipe.loss).__name__, f"{recipe.epochs} epochs in batches of {recipe.batch_size}"
    text = f"{loss}, views {recipe.views}, {size}."
    named = tyro.conf.subcommand(name.replace("_", "-"), default=recipe, description=text)
    return Annotated[tyro.conf.AvoidSubcommands[Pretrain], named]


def _copy(field: dataclasses.Field) -> Any:
    """The field's default, as `make_dataclass` takes it."""
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field() if field.default is dataclasses.MISSING else dataclasses.field(default=field.default)
