"""`influence-ssl`: one command with sub-commands, each imported only when it is asked for."""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole, keep_float32
from influence_ssl_jax.errors import InfluenceError, PartnerError, printable, require
from influence_ssl_jax.signals import Terminated, leave_at_once, orderly, status_of

PROGRAM = "influence-ssl"
HELP, WIDEST = frozenset({"--help", "-h"}), 100
"""The words that ask for help, and the columns of it at most."""
WRONG, SIGNALLED = 2, 128
"""The exit status of what the user can mend, and the number that a signal's own is added to."""


class Command(NamedTuple):
    """A sub-command by name, so that its modules are imported when it runs and not before.

    Attributes:
        settings: `module:class` of the dataclass whose fields are the options and whose docstring is the help.
        run: `module:function` of `(settings, console) -> None`.
        summary: What it does, in the list of commands.
    """

    settings: str
    run: str
    summary: str


_SETTINGS, _COMMANDS = "influence_ssl_jax.runs.settings", "influence_ssl_jax.cli.commands"
COMMANDS = {
    "demo": Command(
        "influence_ssl_jax.cli.demo:Demo",
        "influence_ssl_jax.cli.demo:demo",
        "all of it on bundled images with planted truth",
    ),
    "pretrain": Command(f"{_SETTINGS}:PretrainRun", f"{_COMMANDS}:pretrain", "train an encoder without labels"),
    "import": Command(
        "influence_ssl_jax.runs.import_encoder:ImportRun",
        f"{_COMMANDS}:import_encoder",
        "make an encoder of a file of weights (.pth, .ckpt, …)",
    ),
    "score": Command(
        f"{_SETTINGS}:ScoreRun",
        f"{_COMMANDS}:score",
        "score every image of a data set by its influence",
    ),
    "audit": Command(f"{_SETTINGS}:AuditRun", f"{_COMMANDS}:audit", "certify a sample of scores, calibrate them all"),
    "compare": Command(
        f"{_SETTINGS}:CompareRun",
        f"{_COMMANDS}:compare",
        "compare the inverse-Hessian backends with exact scores",
    ),
    "report": Command(
        f"{_SETTINGS}:ReportRun",
        f"{_COMMANDS}:report",
        "write the HTML report of a folder of scores",
    ),
    "theory": Command(
        "influence_ssl_jax.cli.theory:Theory",
        "influence_ssl_jax.cli.theory:theory",
        "check every statement of the theory",
    ),
}


def load(place: str) -> Any:
    """Import what `module:attribute` names."""
    module, _, path = place.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


USAGE = f"""\
Influence-SSL: which images shape what a model learns without labels.

Usage: {PROGRAM} COMMAND [OPTIONS]      {PROGRAM} COMMAND --help

Commands:
{{commands}}

Options:
  --help, -h    this text; after a command, its options
  --help-all    after a command, all its options at length
  --version     the installed version
  --debug       after an error, show where it came from

Start with:  {PROGRAM} demo --out demo
"""


def main() -> None:
    """The console script."""
    keep_compiled_programs()
    keep_float32()
    keep_convolutions_whole()
    with orderly():
        status = run(sys.argv[1:])
    # XLA's threads may still compile, or wait for a dead partner: leaving through the interpreter's end would crash in them.
    if status > SIGNALLED or status == PartnerError.status:
        leave_at_once(status, "")
    sys.exit(status)


def run(arguments: Sequence[str], out: Console | None = None, err: Console | None = None) -> int:
    """Run one command line and return the exit status.

    0; 2 for what the user can mend; 3 where more images were skipped than allowed; 4 where another process of the run has
    died; 130 when interrupted, 143 on SIGTERM, 129 where the terminal was closed.

    Args:
        arguments: What follows the program's name.
        out: Where results are said; standard output where None.
        err: Where errors are said; standard error where None.
    """
    out, err = out or Console(), err or Console(stderr=True)
    rest = [argument for argument in arguments if argument != "--debug"]
    if not rest or rest[0] in ("--help", "-h", "help"):
        listed = "\n".join(f"  {name:<10}{entry.summary}" for name, entry in COMMANDS.items())
        out.print(Text(USAGE.format(commands=listed)), soft_wrap=True, end="")
        return 0
    if rest[0] == "--version":
        out.print(Text(f"{PROGRAM} {importlib.metadata.version('influence-ssl-jax')}"))
        return 0
    try:
        with _notes_said(err):
            _execute(rest, out)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
        said = "Interrupted" if number == signal.SIGINT else "Terminated"
        with contextlib.suppress(OSError):  # the terminal may be gone
            err.print(Text(f"{said}. What was finished is kept: the same command goes on from there."), soft_wrap=True)
        return status_of(number)
    except (InfluenceError, ValueError, OSError, RuntimeError) as error:
        if len(rest) < len(arguments):
            raise
        if isinstance(error, RuntimeError):
            error = _of_a_partner(error)
        lines = (printable(line) for line in (str(error) or type(error).__name__).split("\n"))
        said = Text.assemble(("error: ", "bold red"), "\n".join(lines))
        if not isinstance(error, InfluenceError):
            said.append(f"\n({type(error).__name__}; --debug shows where it came from)", style="dim")
        err.print(said, soft_wrap=True)
        return error.status if isinstance(error, InfluenceError) else WRONG
    return 0


def _of_a_partner(error: RuntimeError) -> InfluenceError:
    """What to say where another process of the run has died.

    Raises:
        RuntimeError: It is another error.
    """
    from influence_ssl_jax.parallel import lost_partner

    lost = lost_partner(error)
    if lost is None:
        raise error
    return lost


class _Notes(logging.Handler):
    """Says what the package logs as the notes that they are, without the name of a module."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.console.print(Text(f"note: {printable(record.getMessage())}"), soft_wrap=True)


@contextlib.contextmanager
def _notes_said(console: Console) -> Iterator[None]:
    """While a command runs, its warnings go to the console and nowhere else."""
    ours, handler = logging.getLogger("influence_ssl_jax"), _Notes(console)
    ours.addHandler(handler)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = True


def _execute(arguments: Sequence[str], out: Console) -> None:
    """Parse the options of a sub-command and run it."""
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise InfluenceError(f"There is no command {name!r}; there are {', '.join(COMMANDS)}. Try {PROGRAM} --help.")
    require("cli")
    from influence_ssl_jax.cli.options import (
        has_choices,
        parse,  # loads JAX
        short_help,
        topic_help,
    )

    command = COMMANDS[name]
    settings = load(command.settings)
    # The docstring up to its list of fields, as it is written: examples keep their lines.
    text = inspect.cleandoc(settings.__doc__ or "").partition("\n\nAttributes:")[0]
    if not HELP.isdisjoint(rest) and has_choices(settings):
        topic, width = next((word for word in rest if ":" in word), None), min(out.width, WIDEST)
        program = f"{PROGRAM} {name}"
        said = (
            short_help(settings, program, text, width) if topic is None else topic_help(settings, topic, program, width)
        )
        out.print(Text(said), soft_wrap=True, end="")
        return
    rest = ["--help" if word == "--help-all" else word for word in rest]
    parsed = parse(settings, rest, f"{PROGRAM} {name}", text)
    if not hasattr(parsed, "distributed"):
        from influence_ssl_jax.parallel import rank

        if rank():
            logging.getLogger(__name__).warning(
                "%s is the work of one process; process %s of those that were started together does nothing",
                name,
                rank(),
            )
            return
    load(command.run)(parsed, out)
