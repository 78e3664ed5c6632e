"""Report the progress of a run as events.

The caller of the run decides what to show.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias


@dataclasses.dataclass(frozen=True)
class Started:
    """The start of a stage; `Ended` follows, also after an error.

    Attributes:
        stage: The stage, in words.
        done: Number of images that are already done; None if the stage does not count images.
        total: Number of images at the end of the stage; None if the stage does not count images.
    """

    stage: str
    done: int | None = None
    total: int | None = None


@dataclasses.dataclass(frozen=True)
class Advanced:
    """The end of a batch, in a stage that counts images.

    Attributes:
        stage: The stage, in words.
        done: Number of images that all processes of the run have done.
        total: Number of images at the end of the stage.
        rate: Images per second of all processes; None until a second batch is done, because the first one compiles.
        values: Further numbers, such as the loss.
    """

    stage: str
    done: int
    total: int
    rate: float | None = None
    values: Mapping[str, float | int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a stage, with or without an error.

    Attributes:
        stage: The stage, in words.
    """

    stage: str


@dataclasses.dataclass(frozen=True)
class Note:
    """One sentence for the user.

    Attributes:
        text: The sentence.
        kind: A `fact` of the run, a `caution` about its input, or a `detail` that may be left out.
    """

    text: str
    kind: Literal["fact", "caution", "detail"] = "fact"


@dataclasses.dataclass(frozen=True)
class Written:
    """The end of writing a file.

    Attributes:
        name: Content of the file, in words.
        path: Path of the file.
    """

    name: str
    path: Path


Event: TypeAlias = Started | Advanced | Ended | Note | Written
"""An event that a run reports."""

Progress: TypeAlias = Callable[[Event], None]
"""A function that receives events, one after the other, in the thread of the run."""


def silent(event: Event) -> None:
    """Ignore an event."""
    del event


@contextlib.contextmanager
def stage(progress: Progress, name: str) -> Iterator[None]:
    """Report the start and the end of a stage around a block.

    Args:
        progress: The function that receives the events.
        name: The stage, in words.

    Examples:
        >>> from influence_ssl_jax.progress import stage
        >>> with stage(print, "reading"):
        ...     pass
        Started(stage='reading', done=None, total=None)
        Ended(stage='reading')
    """
    progress(Started(name))
    try:
        yield
    finally:
        progress(Ended(name))
