"""What is checked of a scoring run before it goes on, and before its table is written."""

import dataclasses
import json

import numpy as np
from jaxtyping import Int

from influence_ssl_jax.data.contents import SHOWN, Change, find_changes, refuse_changes
from influence_ssl_jax.data.source import OpenSource
from influence_ssl_jax.errors import DataError, SkippedError
from influence_ssl_jax.parallel import gather, own_part
from influence_ssl_jax.progress import Note, Progress
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs.settings import ScoreRun
from influence_ssl_jax.store import CONTENT, ScoreStore


def take_up(settings: ScoreRun, source: OpenSource, store: ScoreStore, log: RunLog, progress: Progress) -> None:
    """Compare the images that have a score with what was scored, and drop the rows that are to be made again.

    All processes of a run together; each compares its part.

    Raises:
        DataError: Images have changed since they were scored, and are not to be scored again.
    """
    again = np.zeros(0, np.int64)
    if settings.scored_images == "compare":
        changed = sorted({change for text in gather(_changed(source, store)) for change in _read(text)})
        if changed and settings.rescore_changed:
            again = np.array([change.index for change in changed], np.int64)
            log.event("changed images", images=len(changed), first=changed[0].id)
            progress(Note(f"{len(changed):,} images have changed; they are scored again."))
        else:
            refuse_changes(
                changed,
                "since they were scored",
                "Put the images back, give --rescore-changed to score these anew, or choose another folder.",
            )
    if settings.retry_skipped:
        again = np.union1d(again, store.skipped())
    if len(again):
        store.forget(again)


def refuse_two_versions(used: dict[int, bytes], store: ScoreStore) -> None:
    """Check that the images that the curvature was fitted to are those that were scored.

    Args:
        used: Digests of the curvature set, by index.
        store: The scores of all processes.

    Raises:
        DataError: One was changed in between.
    """
    found = []
    for table in store.contents():
        rows = zip(*(table[name].to_pylist() for name in ("index", "id", CONTENT)), strict=True)
        found += [
            Change(index, name, "its bytes are different")
            for index, name, content in rows
            if index in used and content is not None and used[index] != content
        ]
    refuse_changes(
        found,
        "between fitting the curvature and scoring",
        "The curvature and the scores are of different images. Delete the folder, and score again while nothing writes the "
        "images.",
    )


def texts(contents: dict[int, bytes]) -> dict[str, str]:
    """Digests by index, as JSON holds them."""
    return {str(index): content.hex() for index, content in contents.items()}


def refuse_other_images(now: dict[str, str], held: dict[str, str]) -> None:
    """Check that the images a result was begun with, those of the curvature set among them, are the ones that are read.

    Args:
        now: `texts` of what is read now.
        held: `texts` of what was read then.

    Raises:
        DataError: An image has changed, or can no longer or only now be read.
    """
    differing = sorted((index for index in now.keys() | held.keys() if now.get(index) != held.get(index)), key=int)
    if differing:
        more = ", …" if len(differing) > SHOWN else ""
        raise DataError(
            f"{len(differing):,} images that the curvature or exact scores were computed from have changed: examples "
            f"{', '.join(differing[:SHOWN])}{more}. What was finished and what is missing would be of two data sets. Put "
            "the images back, or choose another folder."
        )


def refuse_many_skipped(settings: ScoreRun, skipped: int, size: int) -> None:
    """Check that not too large a share of the images was skipped.

    Raises:
        SkippedError: It was.
    """
    if skipped > settings.most_skipped * size:
        raise SkippedError(
            f"{skipped:,} of {size:,} images could not be used, more than the share of {settings.most_skipped:g} that "
            "--most-skipped allows; the scores of the others are written, and each reason stands in its row. Repair the "
            "images and give --retry-skipped, or allow more."
        )


def _changed(source: OpenSource, store: ScoreStore) -> str:
    """This process's part of the comparison, as text."""
    found: list[Change] = []
    for table in store.contents():
        mine: Int[np.ndarray, " part"] = own_part(np.arange(table.num_rows))
        rows = table.take(mine)
        found += find_changes(source, rows["index"].to_numpy(), rows["id"].to_pylist(), rows[CONTENT].to_pylist())
    return json.dumps([dataclasses.astuple(change) for change in found])


def _read(text: str) -> list[Change]:
    return [Change(*each) for each in json.loads(text)]
