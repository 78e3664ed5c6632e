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


class Together:
    """Several runs whose batches alternate, reported as one.

    Stages, notes and files carry the name of their run. Stages that count images are one stage, with the sums of images
    and speeds.

    Args:
        progress: The function that receives the events.

    Examples:
        >>> from influence_ssl_jax.progress import Note, Together
        >>> Together(print).of("simclr")(Note("Two images have one name."))
        Note(text='simclr: Two images have one name.', kind='fact')
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stage = progress, ""
        self._latest: dict[str, Advanced] = {}

    def of(self, name: str) -> Progress:
        """Return the function that receives the events of one run."""

        def tell(event: Event) -> None:
            counted = self._latest.get(name)
            if isinstance(event, Advanced):
                self._latest[name] = event
                self._advance()
            elif isinstance(event, Started) and event.done is not None and event.total is not None:
                self._latest[name] = Advanced(event.stage, event.done, event.total)
            elif isinstance(event, Ended) and counted is not None and event.stage == counted.stage:
                return
            elif isinstance(event, Started | Ended):
                self._progress(dataclasses.replace(event, stage=f"{name}: {event.stage}"))
            elif isinstance(event, Note):
                self._progress(dataclasses.replace(event, text=f"{name}: {event.text}"))
            else:
                self._progress(dataclasses.replace(event, name=f"{name}: {event.name}"))

        return tell

    @contextlib.contextmanager
    def counting(self, name: str, total: int) -> Iterator[None]:
        """Report one stage that counts all runs' images around a block."""
        self._stage, self._total = name, total
        self._progress(Started(name, 0, total))
        try:
            yield
        finally:
            self._progress(Ended(name))

    def _advance(self) -> None:
        """Report the sums over the runs; the speed once all have one."""
        latest = self._latest.values()
        rates = [each.rate for each in latest if each.rate is not None]
        rate = sum(rates) if len(rates) == len(latest) else None
        self._progress(Advanced(self._stage, sum(each.done for each in latest), self._total, rate))


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
