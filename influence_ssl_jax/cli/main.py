"""Run `influence-ssl`: find a command, parse options, run it, print errors."""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole, keep_float32
from influence_ssl_jax.errors import InfluenceError, PartnerError, disk_of, printable, require
from influence_ssl_jax.signals import Terminated, leave_at_once, orderly, status_of

PROGRAM = "influence-ssl"
HELP, WIDEST = frozenset({"--help", "-h"}), 100
"""The options that ask for help, and the largest number of columns of the help."""
WRONG, SIGNALLED = 2, 128
"""The exit status of errors that the user can repair, and the number to which that of a signal is added."""


class Command(NamedTuple):
    """A command, whose named parts are imported only when it runs.

    Attributes:
        settings: `module:class` of a dataclass; its fields are the options and its docstring is the help.
        run: `module:function` of `(settings, console) -> None`.
        summary: What it does, for the list of commands.
    """

    settings: str
    run: str
    summary: str


_SETTINGS, _COMMANDS = "influence_ssl_jax.runs.settings", "influence_ssl_jax.cli.commands"
COMMANDS = {
    "demo": Command(
        "influence_ssl_jax.cli.demo:Demo",
        "influence_ssl_jax.cli.demo:demo",
        "run everything on bundled images with planted truth",
    ),
    "pretrain": Command(f"{_SETTINGS}:PretrainRun", f"{_COMMANDS}:pretrain", "train an encoder without labels"),
    "probe": Command(
        "influence_ssl_jax.runs.probe:ProbeRun",
        f"{_COMMANDS}:probe",
        "measure the accuracy of an encoder on test images",
    ),
    "import": Command(
        "influence_ssl_jax.runs.import_encoder:ImportRun",
        f"{_COMMANDS}:import_encoder",
        "make an encoder from a file of weights (.pth, .ckpt, …)",
    ),
    "score": Command(
        f"{_SETTINGS}:ScoreRun",
        f"{_COMMANDS}:score",
        "score every image of a data set by its influence",
    ),
    "audit": Command(f"{_SETTINGS}:AuditRun", f"{_COMMANDS}:audit", "certify a sample of scores and calibrate all"),
    "compare": Command(
        f"{_SETTINGS}:CompareRun",
        f"{_COMMANDS}:compare",
        "compare backends with exact scores",
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
    """Import and return the object that `module:attribute` names.

    Examples:
        >>> load("math:tau") == 6.283185307179586
        True
    """
    module, _, path = place.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


USAGE = f"""\
Measure which images shape what a model learns without labels.

Usage: {PROGRAM} COMMAND [OPTIONS]      {PROGRAM} COMMAND --help

Commands:
{{commands}}

Options:
  --help, -h    show this text; after a command, its options
  --help-all    after a command, show all its options in detail
  --version     show the installed version
  --debug       show where in the code an error occurred

Start with:  {PROGRAM} demo --out demo
"""


class _Output(Console):
    """A console that lets the program handle an ended reader."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich would exit with status 1."""
        raise BrokenPipeError


def main() -> None:
    """Run the command line of this process and exit."""
    keep_compiled_programs()
    keep_float32()
    keep_convolutions_whole()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding lacks is written as an escape, and stops no run
            stream.reconfigure(errors="backslashreplace")
    with _outlive_output(), orderly():
        status = run(sys.argv[1:])
    # Threads of XLA may still compile, or wait for a dead process; the normal exit of Python would crash in them.
    if status > SIGNALLED or status == PartnerError.status:
        leave_at_once(status, "")
    sys.exit(status)


@contextlib.contextmanager
def _outlive_output() -> Iterator[None]:
    """End silently if the reader of the output has ended.

    As `head` ends before the block does. The exit status is that of SIGPIPE.
    """
    status = status_of(signal.SIGPIPE)
    with contextlib.suppress(BrokenPipeError):
        try:
            yield
        finally:  # also before the exit of a parser that has printed its help
            try:
                if sys.stdout is not None:
                    sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                print(f"error: The output cannot be written: {error.strerror}.", file=sys.stderr)
                status = WRONG
                raise BrokenPipeError from error
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # what is left in their buffers is written at the exit
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    sys.exit(status)


def run(arguments: Sequence[str], out: Console | None = None, err: Console | None = None) -> int:
    """Run a command line and return its exit status.

    It is 0 for success, 2 for an error that the user can repair, 3 if more images were skipped than allowed, 4 if another
    process of the run has died, 130 after an interrupt, 143 after SIGTERM, and 129 if the terminal was closed.

    Args:
        arguments: The words after the name of the program.
        out: The console for results; None takes standard output.
        err: The console for errors and notes; None takes standard error.

    Raises:
        BrokenPipeError: The reader of the output has ended.
    """
    out, err = out or _Output(), err or _Output(stderr=True)
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        with _print_notes(err):
            _execute(rest, out)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
        said = "Interrupted" if number == signal.SIGINT else "Terminated"
        with contextlib.suppress(OSError):  # the terminal may be gone
            err.print(Text(f"{said}. Finished work is kept; repeat the command to continue."), soft_wrap=True)
        return status_of(number)
    except (InfluenceError, ValueError, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) or len(rest) < len(arguments):
            raise
        if isinstance(error, RuntimeError | MemoryError):
            error = _explain(error)
        if isinstance(error, OSError) and error.filename is not None:
            error = _name_disk(error)
        if isinstance(error, FileNotFoundError) and not _has_current_folder():
            error = InfluenceError(
                "The current folder has been deleted. Change to another folder, and repeat the command."
            )
        lines = (printable(line) for line in (str(error) or type(error).__name__).split("\n"))
        said = Text.assemble(("error: ", "bold red"), "\n".join(lines))
        if not isinstance(error, InfluenceError):
            said.append(f"\n({type(error).__name__}; --debug shows where it occurred)", style="dim")
        err.print(said, soft_wrap=True)
        return error.status if isinstance(error, InfluenceError) else WRONG
    return 0


def _name_disk(error: OSError) -> InfluenceError | OSError:
    """Return the error to print.

    It names the disk if that is full or fails.
    """
    try:
        with disk_of(Path(os.fsdecode(error.filename))):
            raise error
    except (InfluenceError, OSError) as named:
        return named


def _has_current_folder() -> bool:
    """Test whether the current folder still exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _explain(error: RuntimeError | MemoryError) -> InfluenceError:
    """Return the error to print if memory or another process has gone.

    Raises:
        RuntimeError: The given error, if it has another cause.
    """
    from influence_ssl_jax.parallel import is_out_of_memory, partner_error

    if is_out_of_memory(error):
        return InfluenceError(
            f"There is not enough memory: {str(error).partition(chr(10))[0] or type(error).__name__}. Take smaller batches "
            "(--batch-size, --curvature.batch-size, --training.batch-size), a smaller rank or fewer draws, or end other "
            "programs; what was finished is kept."
        )
    lost = partner_error(error)
    if lost is None:
        raise error
    return lost


class _Notes(logging.Handler):
    """A handler that prints the warnings of the package as notes."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning as one line."""
        self.console.print(Text(f"note: {printable(record.getMessage())}"), soft_wrap=True)


@contextlib.contextmanager
def _print_notes(console: Console) -> Iterator[None]:
    """Print the package's warnings to the console only, during the block."""
    ours, handler = logging.getLogger("influence_ssl_jax"), _Notes(console)
    ours.addHandler(handler)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = True


def _execute(arguments: Sequence[str], out: Console) -> None:
    """Run a command, or print help or the version."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        listed = "\n".join(f"  {name:<10}{entry.summary}" for name, entry in COMMANDS.items())
        out.print(Text(USAGE.format(commands=listed)), soft_wrap=True, end="")
        return
    if arguments[0] == "--version":
        out.print(Text(f"{PROGRAM} {importlib.metadata.version('influence-ssl-jax')}"))
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise InfluenceError(
            f"There is no command {name!r}; there are {', '.join(COMMANDS)}. {PROGRAM} --help describes them."
        )
    require("cli")
    from influence_ssl_jax.cli.options import parse, wrap_paragraphs, write_help  # imports JAX

    command, program = COMMANDS[name], f"{PROGRAM} {name}"
    settings = load(command.settings)
    # The docstring up to its list of fields.
    text = inspect.cleandoc(settings.__doc__ or "").partition("\n\nAttributes:")[0]
    width = min(out.width, WIDEST)
    if not HELP.isdisjoint(rest):
        out.print(Text(write_help(settings, rest, program, text, width)), soft_wrap=True, end="")
        return
    rest = ["--help" if word == "--help-all" else word for word in rest]
    parsed = parse(settings, rest, program, wrap_paragraphs(text, width))
    if not hasattr(parsed, "distributed"):
        from influence_ssl_jax.parallel import rank

        if rank():
            logging.getLogger(__name__).warning(
                "one process runs %s; process %s of those that were started together does nothing",
                name,
                rank(),
            )
            return
    load(command.run)(parsed, out)
