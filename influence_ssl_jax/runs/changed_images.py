"""Compare images with those that a run has scored."""

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.data.contents import SHOWN, Change, find_changes, refuse_changes
from influence_ssl_jax.data.examples import OpenSource
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.parallel import gather, own_part
from influence_ssl_jax.progress import Note, Progress
from influence_ssl_jax.report.scored_run import ScoredFile
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs.settings import ScoreRun
from influence_ssl_jax.store import CONTENT, ScoreStore, read_notes


def forget_changed(settings: ScoreRun, source: OpenSource, store: ScoreStore, log: RunLog, progress: Progress) -> None:
    """Drop the scores of images that changed or are read again.

    All processes of a run call it together; each compares its part.

    Raises:
        DataError: Images have changed since they were scored, and `rescore_changed` is off.
    """
    again, fitted = np.zeros(0, np.int64), fitted_images(store)
    if settings.scored_images == "compare":
        changed = sorted({change for text in gather(_find_changed(source, store)) for change in _parse(text)})
        if fitted is not None and settings.rescore_changed:
            refuse_changes(
                [change for change in changed if np.isin(change.index, fitted)],
                "and the curvature was fitted to them, so no score could stay",
                "Restore them, or choose another folder. Nothing was scored again.",
            )
        if changed and settings.rescore_changed:
            again = np.array([change.index for change in changed], np.int64)
            log.event("changed images", images=len(changed), first=changed[0].id)
            progress(Note(f"{len(changed):,} images have changed; they are scored again."))
        else:
            refuse_changes(
                changed,
                "since they were scored",
                "Restore the images, give --rescore-changed to score them again, or choose another folder.",
            )
    if settings.retry_skipped:
        again = np.union1d(again, store.skipped())
    if len(again):
        store.forget(again)


def fitted_images(store: ScoreStore) -> Int[np.ndarray, " members"] | None:
    """Return the images that an earlier run fitted the curvature to.

    None if there was no such run.

    All processes of a run call it together, and have the answer of the first one.
    """
    notes = read_notes(store.folder, fingerprint(store.identity))
    known = json.loads(gather(json.dumps(None if notes is None else list(notes["images"])))[0])
    return None if known is None else np.array(sorted(map(int, known)), np.int64)


def refuse_two_versions(used: dict[int, bytes], store: ScoreStore) -> None:
    """Check that the curvature was fitted to the images that were scored.

    Args:
        used: Digests of the curvature set, by index.
        store: The scores of all processes.

    Raises:
        DataError: An image was changed between fitting and scoring.
    """
    changed = []
    for table in store.contents():
        rows = zip(*(table[name].to_pylist() for name in ("index", "id", CONTENT)), strict=True)
        changed += [
            Change(index, name, "its bytes are different")
            for index, name, content in rows
            if index in used and content is not None and used[index] != content
        ]
    refuse_changes(
        changed,
        "between fitting the curvature and scoring",
        "The curvature and the scores are of different images. Delete the folder, and score again while nothing writes the "
        "images.",
    )


def digests_as_text(contents: dict[int, bytes]) -> dict[str, str]:
    """Convert digests by index to JSON: decimal index, hexadecimal digest.

    Examples:
        >>> digests_as_text({3: bytes([10, 255])})
        {'3': '0aff'}
    """
    return {str(index): content.hex() for index, content in contents.items()}


def refuse_other_images(now: dict[str, str], before: dict[str, str]) -> None:
    """Check that a result is continued with the same images.

    Args:
        now: `digests_as_text` of what is read now.
        before: `digests_as_text` of what was read at the beginning.

    Raises:
        DataError: An image has changed, or only one of the two times it could be read.
    """
    differing = sorted((index for index in now.keys() | before.keys() if now.get(index) != before.get(index)), key=int)
    if differing:
        more = ", …" if len(differing) > SHOWN else ""
        raise DataError(
            f"{len(differing):,} images that the curvature or exact scores were computed from have changed: examples "
            f"{', '.join(differing[:SHOWN])}{more}. What was finished and what is missing would be of two data sets. Put "
            "the images back, or choose another folder."
        )


def refuse_rescored(
    scored: ScoredFile, source: OpenSource, rows: np.ndarray, known: dict[int, bytes] | None = None
) -> None:
    """Check that images are the same as those that were scored.

    Args:
        scored: The finished scores.
        source: The images now.
        rows: Indices of the images to compare.
        known: Digests of these images if they have just been read; None reads them from the source.

    Raises:
        DataError: An image has changed; the first ones are named.
    """
    refuse_changed_rows(scored.read_rows(rows, image_columns(scored)), source, rows, known)


def image_columns(scored: ScoredFile) -> list[str]:
    """Return the names of the columns that identify the scored images."""
    return [name for name in ("id", CONTENT) if name in scored.columns]


def refuse_changed_rows(table: pa.Table, source: OpenSource, rows: np.ndarray, known: dict[int, bytes] | None) -> None:
    """Check rows of a table of scores, as `refuse_rescored` does.

    Args:
        table: The rows, with the columns `image_columns`.
        source: The images now.
        rows: Indices of the images.
        known: Digests of these images, or None.

    Raises:
        DataError: An image has changed.
    """
    ids = table["id"].to_pylist()
    contents = table[CONTENT].to_pylist() if CONTENT in table.column_names else [None] * len(ids)
    if known is None:
        changed = find_changes(source, rows, ids, contents)
    else:
        each = zip(rows.tolist(), ids, contents, strict=True)
        changed = [Change(row, name, "its bytes are different") for row, name, content in each if content != known[row]]
    refuse_changes(
        changed, "since they were scored", "Restore them, or score them again (--rescore-changed), then audit."
    )


def digest_of_contents(scored: ScoredFile) -> str:
    """Compute one digest of the bytes of all scored images."""
    if CONTENT not in scored.columns:
        return hashlib.sha256(b"-" * scored.rows).hexdigest()
    digest = hashlib.sha256()
    for table in scored.batches([CONTENT]):
        digest.update(b"".join(content or b"-" for content in table[CONTENT].to_pylist()))
    return digest.hexdigest()


def _find_changed(source: OpenSource, store: ScoreStore) -> str:
    """Compare this process's part of the images; return the changes as JSON."""
    changed: list[Change] = []
    for table in store.contents():
        mine: Int[np.ndarray, " part"] = own_part(np.arange(table.num_rows))
        rows = table.take(mine)
        changed += find_changes(source, rows["index"].to_numpy(), rows["id"].to_pylist(), rows[CONTENT].to_pylist())
    return json.dumps([dataclasses.astuple(change) for change in changed])


def _parse(text: str) -> list[Change]:
    """Read changes from JSON."""
    return [Change(*each) for each in json.loads(text)]
