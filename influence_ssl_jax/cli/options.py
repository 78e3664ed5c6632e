"""Turn settings into options of a command line, and write their help."""

import dataclasses
import functools
import inspect
import operator
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from influence_ssl_jax.data import SOURCES, Source
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError
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


INDENT = 6


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: As it is typed, `--draws`.
        value: What follows it.
        text: What it does.
        default: Its default in words, or `required`.
    """

    name: str
    value: str
    text: str
    default: str


def short_help(settings: type, program: str, description: str, width: int) -> str:
    """Return the help of a command that has choices, in about two screens.

    Args:
        settings: The command's settings.
        program: The command as it is typed.
        description: What the command does, and examples.
        width: Columns.
    """
    fields = list(_fields(settings))
    chosen = {each: choices_of(hint) for each, hint in fields if choices_of(hint)}
    places = " ".join(f"[{each.name.upper()}]" for each in chosen)
    parts = [textwrap.fill(f"usage: {program} [OPTIONS] {places}", width, subsequent_indent=" " * INDENT)]
    parts.append("\n\n".join(_paragraph(text, width) for text in description.split("\n\n")))
    parts.append("\n".join(["Options:", *(line for option in _options(settings) for line in _brief(option, width))]))
    example = ""
    for each, choices in chosen.items():
        default = _chosen(each, choices)
        listed = [line for name, choice in choices.items() for line in _entry(name, choice.text, width)]
        parts.append("\n".join([f"{each.name}:NAME ({default})", *listed]))
        example = f"{each.name}:{default}"
    parts.append(
        f"{program} --help {example}   the options of one choice\n{program} --help-all   every option, at length"
    )
    return "\n\n".join(parts) + "\n"


def topic_help(settings: type, topic: str, program: str, width: int) -> str:
    """Return the options of one choice, such as `backend:ekfac`.

    Args:
        settings: The command's settings.
        topic: The choice as it is typed.
        program: The command as it is typed.
        width: Columns.

    Raises:
        InfluenceError: The command has no such choice; those that it has are listed.
    """
    group, _, name = topic.partition(":")
    known = {each.name: choices_of(hint) for each, hint in _fields(settings) if choices_of(hint)}
    if name not in known.get(group, {}):
        listed = ", ".join(f"{field}:{each}" for field, choices in known.items() for each in choices)
        raise InfluenceError(f"{program} has no choice {topic!r}; there are {listed}.")
    choice = known[group][name]
    text = inspect.cleandoc(choice.settings.__doc__ or "").partition("\n\nAttributes:")[0]
    parts = [f"usage: {program} … {topic} [OPTIONS]", _paragraph(choice.text, width)]
    parts += [_paragraph(paragraph, width) for paragraph in text.split("\n\n") if paragraph != choice.text]
    lines = ["Options:"]
    for option in _every_option(choice.settings, f"{group}.", choice.default):
        lines.append(f"  {option.name} {option.value}".rstrip())
        shown = f"{option.text} ({option.default})"
        lines += textwrap.wrap(shown, width, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def has_choices(settings: type) -> bool:
    """Return whether a field of settings stands for one of several classes."""
    return any(choices_of(hint) for _, hint in _fields(settings))


def _fields(settings: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(settings)
    for each in dataclasses.fields(typing.cast(Any, settings)):
        yield each, hints[each.name]


def _options(settings: type) -> Iterator[Option]:
    """Every option but those of choices; a group of settings is one, unless its options stand without its name."""
    said = _attributes(settings)
    for each, hint in _fields(settings):
        if choices_of(hint):
            continue
        if dataclasses.is_dataclass(hint) and each.metadata.get("inline"):
            yield from _options(typing.cast(type, hint))
        elif dataclasses.is_dataclass(hint):
            inner = ", ".join(name.replace("_", "-") for name in (f.name for f in dataclasses.fields(hint)))
            yield Option(f"{_typed(each)}.NAME", "", f"{said[each.name]} NAME: {inner}", "of each")
        else:
            yield Option(_typed(each), _value(hint), said.get(each.name, ""), _in_words(_default(each)))


def _every_option(settings: type, prefix: str, default: Any) -> Iterator[Option]:
    """Every option, those of inner groups too, below a prefix; defaults are those of an object, where there is one."""
    said = _attributes(settings)
    for each, hint in _fields(settings):
        value = _default(each) if default is None else getattr(default, each.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _every_option(type(value), f"{prefix}{each.name}.", value)
        else:
            yield Option(_typed(each, prefix), _value(hint), said.get(each.name, ""), _in_words(value))


def _typed(field: dataclasses.Field, prefix: str = "") -> str:
    """The name of an option as it is typed."""
    return f"--{prefix}{field.metadata.get('name') or field.name}".replace("_", "-")


def _default(field: dataclasses.Field) -> Any:
    """The default of a field; MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _in_words(value: Any) -> str:
    """A default as it is shown."""
    if value is dataclasses.MISSING:
        return "required"
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _value(hint: Any) -> str:
    """What follows an option: its choices, or the kind of its value."""
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    kinds = [each for each in (typing.get_args(hint) or (hint,)) if each not in (type(None), Ellipsis)]
    names = {int: "INT", float: "FLOAT", bool: "", Path: "PATH"}
    return names.get(kinds[0], "NAME" if typing.get_origin(hint) is None else "…")


def _attributes(settings: type) -> dict[str, str]:
    """The descriptions of fields, from the docstring of their class."""
    listed = inspect.cleandoc(settings.__doc__ or "").partition("\nAttributes:\n")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(listed).splitlines():
        named = re.match(r"(\w+): (.*)", line)
        if named:
            name = named[1]
            found[name] = named[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def _brief(option: Option, width: int) -> list[str]:
    """An option in a line or two: its first sentence, and its default."""
    text = option.text
    end = re.search(r"[.;:](?= (?!NAME))| \((?!C)", text)
    sentence = (text[: end.start()] if end and "NAME: " not in text else text).rstrip(".")
    default = "" if option.default in ("of each", "False") else f" ({option.default})"
    return _entry(f"{option.name} {option.value}".strip(), f"{sentence}{default}", width)


def _entry(name: str, text: str, width: int) -> list[str]:
    """A name and its text, on one line where they fit."""
    if len(name) + len(text) + 4 <= width:
        return [f"  {name}  {text}"]
    return textwrap.wrap(f"{name}  {text}", width, initial_indent="  ", subsequent_indent=" " * INDENT)


def _chosen(field: dataclasses.Field, choices: dict[str, Choice]) -> str:
    """The name of the choice that is the default."""
    default = _default(field)
    same = (name for name, choice in choices.items() if choice.default in (None, default))
    return next(name for name in same if type(default) is choices[name].settings)


def _paragraph(text: str, width: int) -> str:
    """A paragraph, wrapped; a command line is kept as it is."""
    return text if text.startswith("influence-ssl ") else textwrap.fill(text, width)
