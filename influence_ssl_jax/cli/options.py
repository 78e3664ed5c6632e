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
"""The backends by their names on the command line."""
REGISTRY = tyro.constructors.ConstructorRegistry()
"""The rules of tyro for fields that are not numbers, texts or choices."""


@REGISTRY.primitive_rule
def _backend_by_name(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Backend] | None:
    """Read a backend inside a backend by its name.

    It has its default settings. The preconditioner of CG is such a backend.
    """
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
        settings: A frozen dataclass; its fields are the options, and its docstring describes them.
        arguments: The words after the name of the command.
        program: The command as it is typed.
        description: The text above the options in the help.

    Raises:
        SystemExit: If help is requested, an option is unknown, or a value is not valid.
        ValueError: If the settings refuse a combination of values.
        InfluenceError: If a value is an empty text.
    """
    _refuse_empty(arguments)
    config = (tyro.conf.CascadeSubcommandArgs,)
    options: Any = options_of(settings)
    parsed = tyro.cli(options, prog=program, description=description, args=arguments, config=config, registry=REGISTRY)
    return settings(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)})


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Check that no value is an empty text.

    An unset variable of a shell gives one.

    An empty path would mean the current folder.
    """
    named = "The argument"
    for word in arguments:
        named = word.partition("=")[0] if word.startswith("--") else named
        if not word or (word.startswith("--") and word.partition("=")[1:] == ("=", "")):
            raise InfluenceError(f"{named} is empty; give a value, or leave the option out.")


def options_of(settings: type[Settings]) -> type:
    """Return a dataclass with the same name and fields, annotated for tyro."""
    hints, fields = typing.get_type_hints(settings), dataclasses.fields(typing.cast(Any, settings))
    annotated = [(each.name, _annotate(hints[each.name], each.metadata), _copy(each)) for each in fields]
    made = dataclasses.make_dataclass(settings.__name__, annotated, frozen=True)
    made.__doc__ = settings.__doc__
    return made


class Choice(NamedTuple):
    """A class of settings that can be chosen by name.

    Attributes:
        settings: The class.
        text: One sentence: what it is, or when to use it.
        default: An object with the defaults of its options; None takes those of the class.
    """

    settings: type
    text: str
    default: Any = None


def choices_of(hint: Any) -> dict[str, Choice]:
    """Return a field's choices by their names on the command line.

    An abstract class stands for all entries of its registry, a union for its members, and `Pretrain` for all recipes. A
    field of another type has no choices.

    Examples:
        >>> from influence_ssl_jax.data import Source
        >>> choices_of(Source)["folder"].settings.__name__
        'Folder'
    """
    if hint is Backend:
        return {name: Choice(each, each.when_to_use) for name, each in NAMED.items()}
    if hint is Pretrain:
        return {name.replace("_", "-"): _recipe(recipe) for name, recipe in recipes().items()}
    listed = {Source: SOURCES, Measurement: MEASUREMENTS}.get(hint) or typing.get_args(hint)
    if listed and all(dataclasses.is_dataclass(each) for each in listed):
        return {_hyphenate(each): Choice(each, _first_sentence(each)) for each in listed}
    return {}


def _annotate(hint: Any, metadata: Mapping[str, Any]) -> Any:
    """Return the type of a field with the annotations of tyro."""
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
    """Return the type of a choice as a sub-command of tyro."""
    if choice.default is None:
        return Annotated[choice.settings, tyro.conf.subcommand(name)]
    named = tyro.conf.subcommand(name, default=choice.default, description=choice.text)
    return Annotated[tyro.conf.AvoidSubcommands[choice.settings], named]


def _recipe(recipe: Pretrain) -> Choice:
    """Return the choice of a recipe.

    Its loss and optimiser are fixed, everything else is an option.
    """
    loss, size = type(recipe.loss).__name__, f"{recipe.epochs} epochs in batches of {recipe.batch_size}"
    return Choice(Pretrain, f"{loss}, views {recipe.views}, {size}.", recipe)


def _hyphenate(each: type) -> str:
    """Return a class's name in lower case, with hyphens between words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", each.__name__).lower()


def _first_sentence(each: type) -> str:
    """Return the first sentence of a class's docstring, on one line."""
    text = " ".join(inspect.cleandoc(each.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", text)[0].rstrip(".:") + "."


def _copy(field: dataclasses.Field) -> Any:
    """Return a field with the same default, for `make_dataclass`."""
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field() if field.default is dataclasses.MISSING else dataclasses.field(default=field.default)


INDENT = 6
"""Columns that the text of an option is indented by."""
VALUES = {int: "INT", float: "FLOAT", bool: "", str: "TEXT", Path: "PATH"}
"""What stands for the value of an option, by its type."""


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: How it is typed, such as `--draws`; the name in capitals if it is an argument without a name.
        value: What stands for its value.
        text: What it does.
        default: Its default as text: `required` if it has none, empty if there is nothing to show.
        inner: The names of its options, if it is a group of settings.
    """

    name: str
    value: str
    text: str
    default: str
    inner: tuple[str, ...] = ()


def write_help(settings: type, words: Sequence[str], program: str, description: str, width: int) -> str:
    """Write a command's help, or that of the choice in `words`.

    Args:
        settings: The settings of the command.
        words: The words after the name of the command.
        program: The command as it is typed.
        description: What the command does, with examples.
        width: Number of columns.

    Raises:
        InfluenceError: If `words` name a choice that the command does not have.
    """
    topic = next((word for word in words if ":" in word), None)
    if topic is None or not any(choices_of(hint) for _, hint in _fields(settings)):
        return command_help(settings, program, description, width)
    return topic_help(settings, topic, program, width)


def command_help(settings: type, program: str, description: str, width: int) -> str:
    """Write the help of a command.

    Options of a command with choices have one clause each, so that the help fits two screens; those of other commands
    have their whole text.

    Args:
        settings: The settings of the command.
        program: The command as it is typed.
        description: What the command does, with examples.
        width: Number of columns.
    """
    said = _attributes(settings)
    chosen = {each: choices_of(hint) for each, hint in _fields(settings) if choices_of(hint)}
    options = list(_options(settings) if chosen else _every_option(settings))
    places = [option.name for option in options if not option.name.startswith("--")]
    usage = " ".join(["usage:", program, *places, "[OPTIONS]", *(f"[{each.name}:NAME]" for each in chosen)])
    parts = [textwrap.fill(usage, width, subsequent_indent=" " * INDENT)]
    parts.append(wrap_paragraphs(description, width))
    listed = [line for option in options for line in (_brief if chosen else _whole)(option, width)]
    parts.append("\n".join(["Options (defaults in parentheses):", *listed]))
    example = ""
    for each, choices in chosen.items():
        default = _default_choice(each, choices)
        title = textwrap.wrap(f"{each.name}:NAME  {_first_clause(said[each.name])} ({default})", width)
        listed = [line for name, choice in choices.items() for line in _entry(name, choice.text, width)]
        parts.append("\n".join([*title, *listed]))
        example = f"{each.name}:{default}"
    if chosen:
        one, every = f"{program} --help {example}", f"{program} --help-all"
        parts.append(f"More help:\n  {one}\n  {every}")
    return "\n\n".join(parts) + "\n"


def topic_help(settings: type, topic: str, program: str, width: int) -> str:
    """Write the help of one choice, such as `backend:ekfac`.

    Args:
        settings: The settings of the command.
        topic: The choice as it is typed.
        program: The command as it is typed.
        width: Number of columns.

    Raises:
        InfluenceError: If the command has no such choice; the message lists its choices.
    """
    group, _, name = topic.partition(":")
    known = {each.name: choices_of(hint) for each, hint in _fields(settings) if choices_of(hint)}
    if name not in known.get(group, {}):
        listed = ", ".join(f"{field}:{each}" for field, choices in known.items() for each in choices)
        raise InfluenceError(f"{program} has no choice {topic!r}; there are {listed}.")
    choice = known[group][name]
    text = inspect.cleandoc(choice.settings.__doc__ or "").partition("\n\nAttributes:")[0]
    parts = [f"usage: {program} … {topic} [OPTIONS]", wrap_paragraphs(choice.text, width)]
    parts += [wrap_paragraphs(paragraph, width) for paragraph in text.split("\n\n") if paragraph != choice.text]
    lines = ["Options (defaults in parentheses):"]
    for option in _every_option(choice.settings, f"{group}.", choice.default):
        lines += _whole(option, width)
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _fields(settings: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Yield the fields of settings with their types."""
    hints = typing.get_type_hints(settings)
    for each in dataclasses.fields(typing.cast(Any, settings)):
        yield each, hints[each.name]


def _options(settings: type) -> Iterator[Option]:
    """Yield the options of a command.

    A group of settings is one option unless it is inline.
    """
    said = _attributes(settings)
    for each, hint in _fields(settings):
        if choices_of(hint):
            continue
        if dataclasses.is_dataclass(hint) and each.metadata.get("inline"):
            yield from _options(typing.cast(type, hint))
        elif dataclasses.is_dataclass(hint):
            inner = tuple(field.name.replace("_", "-") for field in dataclasses.fields(hint))
            yield Option(f"{_option_as_typed(each)}.NAME", "", said[each.name], "", inner)
        else:
            yield _option(each, hint, said, _default(each))


def _every_option(settings: type, prefix: str = "", default: Any = None) -> Iterator[Option]:
    """Yield every option, those of inner groups too.

    Args:
        settings: The settings.
        prefix: The beginning of the options' names.
        default: An object with the defaults; None takes those of the class.
    """
    said = _attributes(settings)
    for each, hint in _fields(settings):
        value = _default(each) if default is None else getattr(default, each.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = prefix if each.metadata.get("inline") else f"{prefix}{each.name}."
            yield from _every_option(type(value), inner, value)
        else:
            yield _option(each, hint, said, value, prefix)


def _option(field: dataclasses.Field, hint: Any, said: dict[str, str], default: Any, prefix: str = "") -> Option:
    """Return the option of a field."""
    text = said.get(field.name, "")
    if field.metadata.get("positional"):
        return Option(field.name.upper(), "", text, _in_words(default))
    return Option(_option_as_typed(field, prefix), _value(hint), text, _in_words(default))


def _option_as_typed(field: dataclasses.Field, prefix: str = "") -> str:
    """Return the name of an option as it is typed."""
    return f"--{prefix}{field.metadata.get('name') or field.name}".replace("_", "-")


def _default(field: dataclasses.Field) -> Any:
    """Return the default of a field; MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _in_words(value: Any) -> str:
    """Return a default as it is shown: nothing for None and False."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(hint: Any) -> str:
    """Return what stands for an option's value: its choices or type."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    if origin is tuple:
        return f"{_value(inside[0])} ..."
    if inside:
        return _value(next(each for each in inside if each is not type(None)))
    return VALUES.get(hint, "NAME")


def _attributes(settings: type) -> dict[str, str]:
    """Return the descriptions of fields, from the docstrings of all bases."""
    sentences: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        listed = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nAttributes:\n")[2].split("\n\n")[0]
        name = ""
        for line in textwrap.dedent(listed).splitlines():
            named = re.match(r"(\w+): (.*)", line)
            if named:
                name = named[1]
                sentences[name] = named[2]
            elif name:
                sentences[name] += " " + line.strip()
    return sentences


def _first_clause(text: str) -> str:
    """Return text up to the first `.`, `;` or `:` outside parentheses.

    Examples:
        >>> _first_clause("Parts of a path (`head`; `!` removes); all if there are none.")
        'Parts of a path (`head`; `!` removes)'
    """
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter in ".;:" and not depth and text[place + 1 : place + 2] in ("", " "):
            return text[:place]
    return text


def _brief(option: Option, width: int) -> list[str]:
    """Write an option briefly: its text's first clause, and its default.

    This takes a line or two.
    """
    default = f" ({option.default})" if option.default else ""
    inner = f". NAME: {', '.join(option.inner)}" if option.inner else ""
    return _entry(f"{option.name} {option.value}".strip(), f"{_first_clause(option.text)}{inner}{default}", width)


def _whole(option: Option, width: int) -> list[str]:
    """Write an option with its whole text and its default.

    A list of values that is too long for a line becomes part of the text.
    """
    head, text = f"  {option.name} {option.value}".rstrip(), option.text
    if len(head) > width:
        head, text = f"  {option.name} NAME", f"{text} One of {', '.join(option.value.strip('{}').split(','))}."
    text = f"{text} ({option.default})" if option.default else text
    return [head, *textwrap.wrap(text, width, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)]


def _entry(name: str, text: str, width: int) -> list[str]:
    """Write a name and its text, on one line if they fit."""
    if len(name) + len(text) + 4 <= width:
        return [f"  {name}  {text}"]
    return textwrap.wrap(f"{name}  {text}", width, initial_indent="  ", subsequent_indent=" " * INDENT)


def _default_choice(field: dataclasses.Field, choices: dict[str, Choice]) -> str:
    """Return the name of the default choice."""
    default = _default(field)
    same = (name for name, choice in choices.items() if choice.default in (None, default))
    return next(name for name in same if type(default) is choices[name].settings)


def wrap_paragraphs(text: str, width: int) -> str:
    r"""Wrap paragraphs; a long command continues after a backslash.

    Examples:
        >>> print(wrap_paragraphs("influence-ssl report runs/cifar10 --images 60", 40))
        influence-ssl report runs/cifar10 \
            --images 60
    """
    return "\n\n".join(_wrap_paragraph(paragraph, width) for paragraph in text.split("\n\n"))


def _wrap_paragraph(text: str, width: int) -> str:
    """Wrap one paragraph."""
    if not text.startswith("influence-ssl "):
        return textwrap.fill(text, width)
    command = " ".join(text.split())
    lines = textwrap.wrap(command, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)
