"""Compare backends with exact scores of a sample, into a folder."""

import logging
import time
from pathlib import Path

import numpy as np

from influence_ssl_jax import provenance
from influence_ssl_jax.configuration import Plain, describe, fingerprint
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.evaluation.comparison import Examples, backends_to_compare, baselines, compare_backends, label
from influence_ssl_jax.evaluation.exact import Truth, choose_kind, exact_scores
from influence_ssl_jax.evaluation.sample import sample
from influence_ssl_jax.ihvp import CG, Backend
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.progress import Note, Progress, silent, stage
from influence_ssl_jax.report.backends import baseline_rows, row_as_json, write_figures
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs.changed_images import digests_as_text, refuse_other_images
from influence_ssl_jax.runs.prepare import Prepared, describe_encoder, draw_problem, prepare
from influence_ssl_jax.runs.settings import CompareRun, describe_without
from influence_ssl_jax.scoring.memory import available_memory, estimate_memory
from influence_ssl_jax.store import DamagedError, read_sealed, write_sealed
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.store.identity import claim, refuse_foreign
from influence_ssl_jax.store.result import OWNER

COMPARISON, TRUTH, IMAGES, PARTS = "comparison.json", "truth.json", "images.json", "parts"
ROWS, DIGESTS = "rows", "digests"
_log = logging.getLogger(__name__)


def compare(settings: CompareRun, progress: Progress = silent) -> dict[str, Plain]:
    """Compute exact and missing backends' scores, and write table and figures.

    Args:
        settings: The backends, dampings and images.
        progress: Called at every stage.

    Returns:
        The content of `comparison.json`.

    Raises:
        StoreError: The folder holds something else, or is in use.
        InfluenceError: Exact scores are not possible at this size and with this curvature.
    """
    prepared = prepare(settings, progress)
    settings.out.mkdir(parents=True, exist_ok=True)
    refuse_foreign(settings.out, _find_owners(settings.out))
    with lock(settings.out), RunLog(settings.out) as log:
        identity = claim(settings.out, _identity(settings, prepared), _find_owners(settings.out))
        every = backends_to_compare(settings.grid)
        (settings.out / PARTS).mkdir(exist_ok=True)
        problem, used = draw_problem(settings, prepared)
        examples, read = _load_examples(settings, prepared, problem)
        images = digests_as_text({**used, **read})
        _check_images(settings.out / IMAGES, images, fingerprint(identity))
        owner = fingerprint({"run": identity, "images": images})
        there = sum(_is_intact(_part_path(settings, backend), owner) for backend in every)
        log.event("start", todo=len(every) - there, total=len(every), command=provenance.command())
        log.beat("exact scores")
        known = _exact_scores(settings, problem, examples, owner, progress)
        rows = _baseline_rows(settings, problem, examples, known, owner)
        for number, backend in enumerate(every, 1):
            path = _part_path(settings, backend)
            if not _is_intact(path, owner):
                progress(Note(f"{number} of {len(every)}: {label(backend)}"))
                log.beat(label(backend), done=number - 1, total=len(every))
                results = [
                    row_as_json(row)
                    for row in compare_backends([backend], problem, examples, known, settings.calibration)
                ]
                write_sealed(path, {OWNER: owner, ROWS: results}, indent=None)
                log.event("part", backend=label(backend), done=number, total=len(every))
            rows += read_sealed(path)[ROWS]
        record = _finish(settings, prepared, known, rows)
        log.event("finished", backends=len(every), resumed=there)
        return record


def _baseline_rows(
    settings: CompareRun, problem: Problem, examples: Examples, known: list[Truth], owner: str
) -> list[dict[str, Plain]]:
    """Return the rows of the baselines, from the folder if there."""
    path = settings.out / PARTS / "baselines.json"
    if not _is_intact(path, owner):
        rows = baseline_rows(baselines(problem, examples), known)
        write_sealed(path, {OWNER: owner, ROWS: rows}, indent=None)
    return read_sealed(path)[ROWS]


def _is_intact(path: Path, owner: str) -> bool:
    """Test whether a sealed file is there, undamaged and of this comparison.

    Another one is computed again.
    """
    try:
        ours = read_sealed(path).get(OWNER) == owner
    except FileNotFoundError:
        return False
    except DamagedError as error:
        _log.warning("%s It is computed again.", error)
        return False
    if not ours:
        _log.warning("%s is of another comparison, or of other images. It is computed again.", path)
    return ours


def _find_owners(folder: Path) -> set[str]:
    """Return the fingerprint that a folder's list of images names.

    It is that of the comparison, if any.
    """
    try:
        owner = read_sealed(folder / IMAGES).get(OWNER)
    except (FileNotFoundError, DamagedError):
        return set()
    return {owner} if isinstance(owner, str) else set()


def _check_images(path: Path, now: dict[str, str], owner: str) -> None:
    """Record the images of a comparison, or check that they are unchanged.

    Raises:
        DataError: An image has changed.
    """
    if _is_intact(path, owner):
        refuse_other_images(now, read_sealed(path)[DIGESTS])
    else:
        write_sealed(path, {OWNER: owner, DIGESTS: now}, indent=None)


def _finish(
    settings: CompareRun, prepared: Prepared, known: list[Truth], rows: list[dict[str, Plain]]
) -> dict[str, Plain]:
    """Write figures and record, and return the record."""
    record = {
        "configuration": describe(settings),
        "data": prepared.source.members(),
        "damping": {str(truth.relative): truth.damping for truth in known},
        "relative_width": {
            str(truth.relative): float(np.nanmedian((truth.upper - truth.lower) / truth.upper)) for truth in known
        },
        "device": provenance.device(),
        "versions": provenance.versions(),
        "rows": rows,
    }
    write_sealed(settings.out / COMPARISON, record, indent=1)
    write_figures(rows, settings.out)
    return record


def _identity(settings: CompareRun, prepared: Prepared) -> Plain:
    """Return everything that a row depends on.

    The grid is not among it: a larger grid adds rows, and changes none that is there.
    """
    aside = {"out", "encoder", "source", "grid"}
    return {
        "configuration": describe_without(settings, aside),
        **describe_encoder(prepared.encoder, prepared.transform),
        "data": prepared.source.members(),
        **provenance.decisive(),
    }


def _load_examples(settings: CompareRun, prepared: Prepared, problem: Problem) -> tuple[Examples, dict[int, bytes]]:
    """Return the sample, and its digests by index.

    Its batches are small enough for the backends that take most memory, those that form whole gradients.
    """
    chosen, key = sample(settings.audit, len(prepared.source)), settings.scoring.key
    shape, draws = problem.batches.image.shape[2:], settings.scoring.draws
    arguments = (prepared.measurement, problem.params, problem.frozen, CG(), problem.params, shape, draws)
    size = min(settings.scoring.batch_size or estimate_memory(*arguments).batch_size(*available_memory()), len(chosen))
    loaded = list(batches(prepared.source, prepared.transform, size, key, chosen))
    valid = np.concatenate([part.valid for part in loaded])
    index = np.concatenate([np.asarray(part.batch.index) for part in loaded])[valid].tolist()
    contents = [content for part in loaded for content in part.contents if content]
    examples = Examples(prepared.measurement, [part.batch for part in loaded], valid, settings.scoring)
    return examples, dict(zip(index, contents, strict=True))


def _exact_scores(
    settings: CompareRun, problem: Problem, examples: Examples, owner: str, progress: Progress
) -> list[Truth]:
    """Return the exact scores, from the folder if they are there."""
    path = settings.out / TRUTH
    if not _is_intact(path, owner):
        kind = choose_kind(problem) if settings.truth == "auto" else settings.truth
        begun = time.monotonic()
        with stage(progress, f"exact scores of {int(examples.valid.sum())} images: {kind}"):
            truths = exact_scores(kind, problem, *examples[:3], settings.dampings, examples.scoring, settings.audit)
        lists = [{name: np.asarray(getattr(truth, name)).tolist() for name in Truth._fields} for truth in truths]
        write_sealed(path, {OWNER: owner, ROWS: lists}, indent=None)
        progress(Note(f"Exact scores ({kind}): {time.monotonic() - begun:.0f} s"))
    return [
        Truth(row["relative"], row["damping"], np.array(row["lower"]), np.array(row["upper"]))
        for row in read_sealed(path)[ROWS]
    ]


def _part_path(settings: CompareRun, backend: Backend) -> Path:
    """Return the path of one backend's rows, which its settings name."""
    digest = fingerprint(describe(backend))
    return settings.out / PARTS / f"{label(backend).replace(' ', '_')}_{digest[:8]}.json"
