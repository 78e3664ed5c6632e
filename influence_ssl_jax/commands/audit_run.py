"""An audit: everything that `influence-ssl audit` does, one step after the other."""

import collections
import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from rich.console import Console

from influence_ssl_jax.commands.audit_bounds import Bounds, bounds
from influence_ssl_jax.commands.score import Score
from influence_ssl_jax.commands.score_run import Prepared, prepare, problem_over
from influence_ssl_jax.configuration import Plain, describe, restore
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp import Arnoldi
from influence_ssl_jax.influence.audit import relative_width
from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.deviation import Deviation, deviation
from influence_ssl_jax.influence.galerkin import galerkin
from influence_ssl_jax.report.audited import AUDIT, say
from influence_ssl_jax.report.backends import as_json
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.store.files import write_atomically
from influence_ssl_jax.store.manifest import to_bytes

if TYPE_CHECKING:
    from influence_ssl_jax.commands.audit import AuditCommand

BOUNDS, CALIBRATED = "audit.parquet", "calibrated.parquet"


def run(settings: "AuditCommand", out: Console) -> None:
    """Certify a sample, compare score and baselines with it, calibrate every score.

    Raises:
        StoreError: The folder holds no finished run, or certificates of other settings.
        InfluenceError: The images have changed since they were scored, or nothing of them can be certified.
    """
    scored = ScoredRun.load(settings.folder)
    recorded = scored.record["configuration"]
    made = restore({name: value for name, value in recorded.items() if name != "input"}, [Score])
    prepared = prepare(made, out)
    if prepared.source.fingerprint() != scored.record["identity"]["data"]:
        raise InfluenceError(
            f"The images of {settings.folder} have changed since they were scored. Score them again, then audit."
        )
    found = bounds(settings, scored, made, prepared, out)
    compared = judged(scored, found.table, settings.calibration)
    write_atomically(settings.folder / BOUNDS, to_bytes(found.table))
    record = {
        "configuration": describe(settings),
        "damping": found.damping,
        "damping_by_block": isinstance(scored.record["damping"]["resolved"], dict),
        "counts": counts(found),
        "relative_width": _median_width(found.table),
        "deviation": {name: as_json(item) for name, item in compared.items()},
    }
    write_atomically(settings.folder / AUDIT, json.dumps(record, indent=2).encode())
    say(record, out)
    beside = enclosed(scored, made, prepared, out)
    calibrate(settings.folder, scored, found.table, beside, settings.calibration, out)


def enclosed(scored: ScoredRun, made: Score, prepared: Prepared, out: Console) -> pa.Table | None:
    """The rigorous interval of every example, where the scores came from one shared Krylov subspace; else None."""
    resolved = scored.record["damping"]["resolved"]
    if not isinstance(made.backend, Arnoldi) or made.scoring.estimand != "mean_of_scores":
        return None
    problem = problem_over(made, prepared)
    with out.status("Galerkin intervals of every image"):
        state = jax.jit(made.backend.fit)(problem, jax.random.key(made.scoring.seed))
        damping = jnp.asarray(resolved, jax.tree.leaves(problem.params)[0].dtype)
        given = (prepared.source, prepared.transform, damping, made.scoring, prepared.measurement)
        return pa.concat_tables(galerkin(problem, state, *given)).sort_by("index")


def judged(scored: ScoredRun, table: pa.Table, calibration: Calibration) -> dict[str, Deviation]:
    """The score and each baseline against the bounds."""
    rows, lower, upper = _placed(scored, table)
    loss = scored.numbers("alignment_loss")[rows]
    names = ("score", *scored.baselines)
    return {name: deviation(scored.numbers(name)[rows], lower, upper, loss, calibration) for name in names}


def counts(found: Bounds) -> dict[str, Plain]:
    """How many of the sample have which outcome, and the reasons."""
    reasons = [reason or "" for reason in found.table["reason"].to_pylist()]
    lower = found.table["lower"].to_numpy()
    kinds = collections.Counter(reason.partition(":")[0] for reason in reasons if reason)
    return {
        "sample": found.table.num_rows,
        "certified": int(np.isfinite(lower).sum()),
        "narrow": reasons.count(""),
        "resumed": found.resumed,
        "recomputed": found.recomputed,
        "reasons": dict(kinds.most_common()),
    }


def calibrate(
    folder: Path,
    scored: ScoredRun,
    table: pa.Table,
    beside: pa.Table | None,
    calibration: Calibration,
    out: Console,
) -> None:
    """Write a calibrated score with its interval for every example; say why not where the sample is too small.

    Args:
        folder: Where to.
        scored: The scores.
        table: The bounds of the sample.
        beside: Galerkin intervals of every example, where there are any.
        calibration: How.
        out: Where it is said.
    """
    rows, lower, upper = _placed(scored, table)
    try:
        every = calibration.fit(scored.score[rows], lower, upper)(scored.score)
    except InfluenceError as error:
        (folder / CALIBRATED).unlink(missing_ok=True)  # one of an earlier, larger sample must not pass for this one's
        out.print(f"No calibrated scores: {error}", highlight=False, markup=False)
        return
    calibrated = scored.table.select(["index", "id"])
    for name, values in (("score", every.score), ("score_lo", every.low), ("score_hi", every.high)):
        calibrated = calibrated.append_column(name, pa.array(values))
    if beside is not None:
        place = np.searchsorted(beside["index"].to_numpy(), calibrated["index"].to_numpy())
        here = np.isin(calibrated["index"].to_numpy(), beside["index"].to_numpy())
        for name in ("galerkin_lo", "galerkin_hi"):
            column = np.append(beside[name].to_numpy(), np.nan)[np.where(here, place, -1)]
            calibrated = calibrated.append_column(name, pa.array(column))
    write_atomically(folder / CALIBRATED, to_bytes(calibrated))
    out.print(f"Calibrated scores: {folder / CALIBRATED}", highlight=False, markup=False, soft_wrap=True)


def _placed(scored: ScoredRun, table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of the audited examples in the run, and their bounds."""
    place = {index: row for row, index in enumerate(scored.table["index"].to_pylist())}
    rows = np.array([place[index] for index in table["index"].to_pylist()])
    return rows, table["lower"].to_numpy(), table["upper"].to_numpy()


def _median_width(table: pa.Table) -> Plain:
    width = relative_width(table["lower"].to_numpy(), table["upper"].to_numpy())
    known = width[~np.isnan(width)]
    return as_json(float(np.median(known))) if len(known) else None
