"""Report the progress of a run as events; who called the run decides what is shown of them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias


@dataclasses.dataclass(frozen=True)
class Started:
    """A stage that takes time has begun; `Ended` follows, after an error too.

    Attributes:
        stage: What is done, in words.
        done: Images that were done before; None if the stage does not count images.
        total: Images that are done at its end; None if the stage does not count images.
    """

    stage: str
    done: int | None = None
    total: int | None = None


@dataclasses.dataclass(frozen=True)
class Advanced:
    """A batch of a stage that counts images is done.

    Attributes:
        stage: What is done, in words.
        done: Images that are done, by all processes of the run.
        total: Images that are done at the end of the stage.
        rate: Images per second of all processes; None until a second batch is done, since the first one compiles.
        values: Further numbers, such as the loss.
    """

    stage: str
    done: int
    total: int
    rate: float | None = None
    values: Mapping[str, float | int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stage has ended, finished or not.

    Attributes:
        stage: What was done, in words.
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
    """A file is finished.

    Attributes:
        name: What it holds.
        path: Where it is.
    """

    name: str
    path: Path


Event: TypeAlias = Started | Advanced | Ended | Note | Written
"""Anything that a run reports."""

Progress: TypeAlias = Callable[[Event], None]
"""Who is told: called in the thread of the run, with one event after the other."""


def silent(event: Event) -> None:
    """Ignore an event."""
    del event


@contextlib.contextmanager
def stage(progress: Progress, name: str) -> Iterator[None]:
    """Report that a stage begins before the block, and that it has ended after it.

    Args:
        progress: Who is told.
        name: What is done, in words.
    """
    progress(Started(name))
    try:
        yield
    finally:
        progress(Ended(name))
