"""Write the short help of a command: what one needs, and every choice in a sentence."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from influence_ssl_jax.cli.options import Choice, choices_of
from influence_ssl_jax.errors import InfluenceError

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
