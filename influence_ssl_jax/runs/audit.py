"""Audit a folder of scores: certify a sample, and calibrate every score."""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Array, Float, Int
from pyarrow import compute

from influence_ssl_jax import provenance, trees
from influence_ssl_jax.configuration import Plain, describe, fingerprint
from influence_ssl_jax.data.source import Source
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.calibration import SHARES, Calibrated, Calibration, Deviation, deviation
from influence_ssl_jax.evaluation.certificate import Audit, Shared, bound_by_galerkin, prepare_shared
from influence_ssl_jax.evaluation.sample import (
    CertifiedBatch,
    absolute_damping,
    certify_examples,
    relative_width,
    sample,
)
from influence_ssl_jax.evaluation.statistics import quantiles
from influence_ssl_jax.ihvp import Arnoldi
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.progress import Note, Progress, Written, silent, stage
from influence_ssl_jax.provenance import command
from influence_ssl_jax.report.audited import AUDIT
from influence_ssl_jax.report.backends import as_json
from influence_ssl_jax.report.scored_run import ScoredFile, ScoredRun
from influence_ssl_jax.run_log import Pace, RunLog, Watch, watch_stage
from influence_ssl_jax.runs.changed_images import (
    digest_of_contents,
    image_columns,
    refuse_changed_rows,
    refuse_rescored,
)
from influence_ssl_jax.runs.prepare import Prepared, draw_problem, prepare
from influence_ssl_jax.runs.score import identity, restore_settings
from influence_ssl_jax.runs.settings import AuditRun, ScoreRun
from influence_ssl_jax.scoring.fitting import fit_checked
from influence_ssl_jax.scoring.stream import UNRESOLVED
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET, skipped_table
from influence_ssl_jax.store import SCORES, file_digest, write_sealed
from influence_ssl_jax.store.files import lock, replacing, write_atomically
from influence_ssl_jax.store.identity import claim, list_differences
from influence_ssl_jax.store.manifest import Manifest, find_owners, to_bytes
from influence_ssl_jax.store.result import FILES

pc: Any = compute  # its functions are made when it is imported: no type checker knows them
WORK = "audit"
"""Name of the folder of unfinished audits, inside the folder of the scores."""


class Bounds(NamedTuple):
    """The bounds of a sample.

    Attributes:
        table: `index, id, lower, upper, products, reason` of every example of the sample in order of index; an example
            that could not be read has no bounds.
        damping: λ.
        resumed: Number of examples whose certificates an earlier audit left.
        recomputed: Number of examples whose certificates were damaged.
    """

    table: pa.Table
    damping: float
    resumed: int
    recomputed: int


def certify_missing(
    settings: AuditRun, scored: ScoredFile, run: ScoreRun, prepared: Prepared, progress: Progress
) -> Bounds:
    """Certify the sample's examples that lack a certificate, batch by batch.

    Args:
        settings: The settings of the audit.
        scored: The finished scores.
        run: The settings of the scores.
        prepared: The inputs from which the scores were made.
        progress: Called as the work advances.

    Raises:
        StoreError: The folder holds certificates of other settings, or is in use.
        InfluenceError: No example of the sample could be read.
    """
    folder = settings.folder / WORK
    wide = jax.enable_x64(True) if settings.precision == "float64" else contextlib.nullcontext()
    with RunLog(folder) as log, wide:
        advice = (
            f"Repeat the audit with its earlier settings, or delete {folder}: the scores stay, the audit starts again."
        )
        owner = claim(folder, _identity(settings, scored), find_owners(folder / "parts"), advice)
        manifest = Manifest.load(folder / "parts", fingerprint(owner))
        chosen = sample(settings.audit, len(prepared.source), find_left_out(scored))
        if not len(chosen):
            raise InfluenceError(
                "Every image is in the curvature set and was scored without its own contribution (leave_own_out): each has "
                "a matrix of its own, but an audit certifies one matrix for all. Score with fewer --curvature.examples "
                "than images."
            )
        listed = int(np.isin(chosen, manifest.indices()).sum())
        manifest.check(np.zeros(len(prepared.source), bool))
        there = np.isin(chosen, manifest.indices())
        resumed, recomputed = int(there.sum()), listed - int(there.sum())
        log.event("start", todo=len(chosen) - resumed, total=len(chosen), recomputed=recomputed, command=command())
        refuse_rescored(scored, prepared.source, chosen)
        averaged, used = draw_problem(run, prepared, None, find_members(scored))
        refuse_rescored(scored, prepared.source, np.array(sorted(used), np.int64), used)
        problem = _cast(averaged, settings.precision)
        shared = _prepare_shared(problem, settings.audit, resumed < len(chosen), progress)
        damping = _resolve_damping(scored.record["damping"]["resolved"], problem, run, settings, shared)
        if resumed < len(chosen):
            _announce(settings, problem, run, len(chosen), resumed, recomputed, progress)
            todo = _unfinished_batches(chosen, there, settings.audit.batch_size)
            arguments = (problem, prepared.source, prepared.transform, todo, damping, run.scoring)
            with watch_stage(progress, log, "certifying", Pace(len(chosen), resumed)) as watch:
                log.beat("certifying", total=len(chosen), done=resumed)
                for part in certify_examples(*arguments, settings.audit, prepared.measurement, shared):
                    _write_part(part, manifest, log, watch)
        log.event("finished", sample=len(chosen), resumed=resumed, recomputed=recomputed)
        return Bounds(_collect(manifest, chosen), float(damping), resumed, recomputed)


def _unfinished_batches(chosen: np.ndarray, there: np.ndarray, size: int) -> np.ndarray:
    """Return the batches of the sample that are not complete.

    Examples that have a certificate are −1. Every example keeps its row in its batch, so a damaged certificate is
    computed again to the same bits.
    """
    rows = np.where(there, -1, chosen)
    return np.concatenate([rows[k : k + size] for k in range(0, len(rows), size) if (rows[k : k + size] >= 0).any()])


def _write_part(part: CertifiedBatch, manifest: Manifest, log: RunLog, watch: Watch) -> None:
    """Write one certified batch, and log it."""
    if part.table.num_rows:
        manifest.add("scored", part.table, 0.0, "")
    if part.skipped:
        manifest.add("skipped", skipped_table(part.skipped), 0.0, "")
    watch.advance(part.table.num_rows + len(part.skipped))
    log.event("part", rows=part.table.num_rows, skipped=len(part.skipped), **watch.pace.facts())


def _collect(manifest: Manifest, chosen: np.ndarray) -> pa.Table:
    """Return the rows of the whole sample.

    Unread examples have a reason and no bounds.
    """
    scored = [manifest.read(part) for part in manifest.parts if part.kind == "scored"]
    skipped = [manifest.read(part) for part in manifest.parts if part.kind == "skipped"]
    if not scored:
        raise InfluenceError(f"None of the {len(chosen)} examples of the sample could be read; see the source's notes.")
    table = pa.concat_tables(scored)
    for part in skipped:
        nothing = {"lower": [np.nan] * len(part), "upper": [np.nan] * len(part), "products": [0] * len(part)}
        named = {name: part[name].to_pylist() for name in ("index", "id", "reason")}
        table = pa.concat_tables([table, pa.table({**named, **nothing}, schema=table.schema)])
    return table.filter(np.isin(table["index"].to_numpy(), chosen)).sort_by("index")


def _announce(
    settings: AuditRun, problem: Problem, run: ScoreRun, size: int, resumed: int, recomputed: int, progress: Progress
) -> None:
    """Report the work to do, in products with C."""
    if recomputed:
        progress(Note(f"{recomputed} certificates were damaged; they are computed again."))
    if resumed:
        progress(Note(f"Continuing: {resumed} of {size} images are certified."))
    draws, images, parameters = run.scoring.draws, problem.batches.index.size, trees.size(problem.params)
    if settings.audit.by == "rows":
        how = f"from the gradients of {images:,} curvature images of {parameters:,} parameters"
    else:
        size_of_product = f"{images:,} images and {parameters:,} parameters"
        how = f"at most {settings.audit.steps} products with C per draw, over {size_of_product}"
    text = f"{size - resumed} images, {draws} draws each, {how}, in {settings.precision}."
    progress(Note(text, "detail"))


def _identity(settings: AuditRun, scored: ScoredFile) -> Plain:
    """Return everything that a certificate depends on.

    The size of the sample is not among it.
    """
    return {
        "scores": scored.record["fingerprint"],
        "audit": {name: value for name, value in describe(settings.audit).items() if name != "examples"},
        "precision": settings.precision,
        "images": digest_of_contents(scored),
        **provenance.decisive(),
    }


def _cast(problem: Problem, precision: str) -> Problem:
    """Convert the parameters to the precision of the audit.

    Views and their noise stay the same.
    """
    if precision == "float32":
        return problem
    params, frozen = trees.astype((problem.params, problem.frozen), jnp.float64)
    return dataclasses.replace(problem, params=params, frozen=frozen)


def _prepare_shared(problem: Problem, settings: Audit, certifies: bool, progress: Progress) -> Shared:
    """Compute what the certificates share, if there are any to make.

    Rows of C give λ too.
    """
    if settings.by == "rows":
        name = "gradients of the curvature set"
    elif certifies and settings.subspace:
        name = "a subspace for all images"
    else:
        return None
    with stage(progress, name):
        return jax.block_until_ready(prepare_shared(problem, settings))


def _resolve_damping(
    resolved: Plain, problem: Problem, run: ScoreRun, settings: AuditRun, shared: Shared
) -> Float[Array, ""]:
    """Return λ as one number.

    It is the backend's own, or relative to the mean eigenvalue of the whole matrix if the backend's differs between
    blocks.
    """
    if isinstance(resolved, dict):
        return absolute_damping(problem, run.scoring.damping, settings.audit, shared)
    return jnp.asarray(resolved, jax.tree.leaves(problem.params)[0].dtype)


BOUNDS, CALIBRATED = "audit.parquet", "calibrated.parquet"
GALERKIN = ("galerkin_lo", "galerkin_hi")
"""Columns of the interval that one shared Krylov subspace gives."""


def audit(
    settings: AuditRun,
    progress: Progress = silent,
    encoder: Encoder | None = None,
    source: Source | None = None,
) -> dict[str, Plain]:
    """Certify a sample, compare the scores with it, and calibrate them.

    The baselines are compared too.

    Args:
        settings: The settings of the audit.
        progress: Called at every stage and batch.
        encoder: The encoder, if the scores were made from an object.
        source: The images, if the scores were made from an object.

    Returns:
        The content of `audit.json`.

    Raises:
        StoreError: The folder holds no finished scores, or certificates of other settings.
        InfluenceError: The images have changed since they were scored, or none of them can be certified.
    """
    scored = ScoredFile.open(settings.folder)
    run = restore_settings(scored.record, encoder, source)
    prepared = prepare(run, progress)
    refuse_differences(scored, identity(run, prepared.encoder, prepared.transform, prepared.source))
    (settings.folder / WORK).mkdir(exist_ok=True)
    with lock(settings.folder / WORK):
        return _audit(settings, scored, run, prepared, progress)


def refuse_differences(scored: ScoredFile, now: Plain) -> None:
    """Check that an audit reads what the scores were made from.

    Versions and device may differ: an audit has its own.

    Args:
        scored: The finished scores.
        now: The identity of what is read now.

    Raises:
        InfluenceError: The network, its input, the images or a setting differs; each difference is listed.
    """
    own = ("size", "versions", "device")
    before, after = ({k: v for k, v in each.items() if k not in own} for each in (scored.record["identity"], now))
    listed = list_differences(before, json.loads(json.dumps(after)))
    if listed:
        raise InfluenceError(
            f"The scores of {scored.folder} were made from other inputs than those that are there now (then → now):\n"
            f"{listed}\nRestore these inputs, or score again and then audit."
        )


def _audit(
    settings: AuditRun, scored: ScoredFile, run: ScoreRun, prepared: Prepared, progress: Progress
) -> dict[str, Plain]:
    """Do the work of `audit` while the folder is locked."""
    bounds = certify_missing(settings, scored, run, prepared, progress)
    compared = compare_with_bounds(scored, bounds.table, settings.calibration)
    write_atomically(settings.folder / BOUNDS, to_bytes(bounds.table))
    record = {
        "configuration": describe(settings),
        "damping": bounds.damping,
        "damping_by_block": isinstance(scored.record["damping"]["resolved"], dict),
        "counts": count_outcomes(bounds),
        "relative_width": _median_width(bounds.table),
        "deviation": {name: as_json(item) for name, item in compared.items()},
    }
    beside = bound_every_score(scored, run, prepared, progress)
    calibrated = calibrate(settings.folder, scored, bounds.table, beside, settings.calibration, progress)
    files = (SCORES, BOUNDS, *([CALIBRATED] if calibrated else []))
    files_written = {name: file_digest(settings.folder / name) for name in files}
    write_sealed(settings.folder / AUDIT, {**record, FILES: files_written})
    return record


def bound_every_score(
    scored: ScoredFile, run: ScoreRun, prepared: Prepared, progress: Progress
) -> Iterator[pa.Table] | None:
    """Compute the Galerkin interval of every example, or return None.

    There are intervals if one shared Krylov subspace gave the scores.
    """
    if not isinstance(run.backend, Arnoldi) or run.scoring.estimand != "mean_of_scores":
        return None
    return _bound_in_order(scored, run, run.backend, prepared, progress)


def _bound_in_order(
    scored: ScoredFile, run: ScoreRun, backend: Arnoldi, prepared: Prepared, progress: Progress
) -> Iterator[pa.Table]:
    """Yield the intervals batch by batch, in order of index.

    Before that, the images are compared with those that were scored.
    """
    resolved = scored.record["damping"]["resolved"]
    problem = draw_problem(run, prepared, None, find_members(scored))[0]
    start = 0
    for table in scored.batches(image_columns(scored)):
        refuse_changed_rows(table, prepared.source, np.arange(start, start + table.num_rows), None)
        start += table.num_rows
    with stage(progress, "Galerkin intervals of every image"):
        state = fit_checked(problem, backend, run.scoring.seed)
        damping = jnp.asarray(resolved, jax.tree.leaves(problem.params)[0].dtype)
        arguments = (prepared.source, prepared.transform, damping, run.scoring, prepared.measurement)
        yield from bound_by_galerkin(problem, state, *arguments)


def compare_with_bounds(scored: ScoredFile, table: pa.Table, calibration: Calibration) -> dict[str, Deviation]:
    """Compare the score and each baseline with the bounds of the sample.

    Args:
        scored: The finished scores.
        table: The bounds, with columns `index, lower, upper`.
        calibration: How scores are brought to the exact scale.

    Returns:
        The deviation of the score and of each baseline, by name.
    """
    rows, lower, upper = _columns(table)
    audited = scored.read_rows(rows)
    sampled = ScoredRun(scored.folder, audited, scored.record)
    known = ~np.isnan(resolved_scores(audited, scored.record))
    arguments = lower[known], upper[known], sampled.numbers("alignment_loss")[known], calibration
    return {name: deviation(sampled.numbers(name)[known], *arguments) for name in ("score", *sampled.baselines)}


def resolved_scores(rows: pa.Table, record: dict[str, Any]) -> Float[np.ndarray, " rows"]:
    """Return rows' scores, NaN where no calibration can learn from them.

    These are rounding noise, and scores by another matrix (`leave_own_out`).

    Args:
        rows: With `score`, `reason`, and `in_curvature_set` if the run has it.
        record: The record of the run.
    """
    unusable = rows["reason"].to_numpy(zero_copy_only=False) == UNRESOLVED
    if leaves_own_out(record):
        unusable |= rows[IN_CURVATURE_SET].fill_null(False).to_numpy(zero_copy_only=False)
    score = rows["score"].to_numpy(zero_copy_only=False).astype(float)
    return np.where(unusable, np.nan, score)


def leaves_own_out(record: dict[str, Any]) -> bool:
    """Test whether the curvature set's images were scored without their own contribution."""
    return record.get("configuration", {}).get("scoring", {}).get("leave_own_out", False)


def find_left_out(scored: ScoredFile) -> Int[np.ndarray, " members"]:
    """Find the rows that were scored without their own contribution.

    No other image has the matrix of such a row.
    """
    members = find_members(scored) if leaves_own_out(scored.record) else None
    return np.zeros(0, np.int64) if members is None else members


def find_members(scored: ScoredFile) -> Int[np.ndarray, " members"] | None:
    """Find the images of the curvature set.

    None if the table does not say.
    """
    if IN_CURVATURE_SET not in scored.columns:
        return None
    tables = (table.filter(pc.field(IN_CURVATURE_SET)) for table in scored.batches(["index", IN_CURVATURE_SET]))
    return np.concatenate([table["index"].to_numpy() for table in tables])


def count_outcomes(bounds: Bounds) -> dict[str, Plain]:
    """Count the outcomes of the sample, and their reasons."""
    reasons = [reason or "" for reason in bounds.table["reason"].to_pylist()]
    lower = bounds.table["lower"].to_numpy()
    kinds = collections.Counter(reason.partition(":")[0] for reason in reasons if reason)
    return {
        "sample": bounds.table.num_rows,
        "certified": int(np.isfinite(lower).sum()),
        "narrow": reasons.count(""),
        "resumed": bounds.resumed,
        "recomputed": bounds.recomputed,
        "reasons": dict(kinds.most_common()),
    }


def calibrate(
    folder: Path,
    scored: ScoredFile,
    table: pa.Table,
    beside: Iterable[pa.Table] | None,
    calibration: Calibration,
    progress: Progress,
) -> bool:
    """Write a calibrated score with its interval for every example.

    Args:
        folder: The folder of the scores.
        scored: The scores.
        table: The bounds of the sample.
        beside: Galerkin intervals of every example in order of index, a piece at a time, or None.
        calibration: How scores are calibrated.
        progress: Called with the result, or with the reason if the sample is too small.

    Returns:
        Whether calibrated scores were written.
    """
    rows, lower, upper = _columns(table)
    try:
        tenths = quantiles(lambda: positive_scores(scored), SHARES)
        audited = scored.read_rows(rows, _of_scores(scored))
        calibrated = calibration.fit(resolved_scores(audited, scored.record), lower, upper, tenths)
    except InfluenceError as error:
        (folder / CALIBRATED).unlink(missing_ok=True)  # a file of an earlier, larger sample would be taken for this one
        progress(Note(f"No calibrated scores: {error}"))
        return False
    writer: pq.ParquetWriter | None = None
    intervals = None if beside is None else Ahead(beside)
    with replacing(folder / CALIBRATED) as temporary:
        for part in scored.batches(["id", *_of_scores(scored)]):
            calibrated_scores = calibrated(resolved_scores(part, scored.record))
            along = None if intervals is None else intervals.through(part["index"][-1].as_py())
            written = _add_intervals(part.select(["index", "id"]), calibrated_scores, along)
            writer = writer or pq.ParquetWriter(temporary, written.schema, compression="zstd")
            writer.write_table(written)
        if writer is not None:
            writer.close()
    progress(Written("Calibrated scores", folder / CALIBRATED))
    return True


def _of_scores(scored: ScoredFile) -> list[str]:
    """List the columns that say which scores a calibration can learn from."""
    return ["index", "score", "reason", *([IN_CURVATURE_SET] if IN_CURVATURE_SET in scored.columns else [])]


def positive_scores(scored: ScoredFile) -> Iterator[Float[np.ndarray, " some"]]:
    """Yield the positive scores that a calibration can use, in pieces."""
    for part in scored.batches(_of_scores(scored)):
        score = resolved_scores(part, scored.record)
        yield score[np.isfinite(score) & (score > 0)]


class Ahead:
    """Galerkin intervals in order of index, computed when they are needed."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = iter(tables)
        self._rest = pa.schema({"index": pa.int64(), **dict.fromkeys(GALERKIN, pa.float64())}).empty_table()

    def through(self, last: int) -> pa.Table:
        """Return rows not returned yet, up to the index `last`."""
        while not self._rest.num_rows or self._rest["index"][-1].as_py() <= last:
            more = next(self._tables, None)
            if more is None:
                break
            self._rest = pa.concat_tables([self._rest, more])
        count = int(np.searchsorted(self._rest["index"].to_numpy(), last, side="right"))
        rows, self._rest = self._rest.slice(0, count), self._rest.slice(count)
        return rows


def _add_intervals(rows: pa.Table, every: Calibrated, beside: pa.Table | None) -> pa.Table:
    """Add calibrated scores, and Galerkin intervals if any, to `index, id`."""
    for name, values in (("score", every.score), ("score_lo", every.low), ("score_hi", every.high)):
        rows = rows.append_column(name, pa.array(values))
    if beside is None:
        return rows
    index, known = rows["index"].to_numpy(), beside["index"].to_numpy()
    place = np.where(np.isin(index, known), np.searchsorted(known, index), -1)
    for name in GALERKIN:
        rows = rows.append_column(name, pa.array(np.append(beside[name].to_numpy(), np.nan)[place]))
    return rows


def _columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the columns index, lower and upper.

    The index is the row of the example in the run.
    """
    return tuple(table[name].to_numpy() for name in ("index", "lower", "upper"))


def _median_width(table: pa.Table) -> Plain:
    """Return the median relative width of the bounds.

    It is null if there are none.
    """
    width = relative_width(table["lower"].to_numpy(), table["upper"].to_numpy())
    known = width[~np.isnan(width)]
    return as_json(float(np.median(known))) if len(known) else None
