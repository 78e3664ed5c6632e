"""An audit: everything that `influence-ssl audit` does, one step after the other."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Array, Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from influence_ssl_jax.commands.score import Score
from influence_ssl_jax.commands.score_run import prepare, problem_over
from influence_ssl_jax.configuration import Plain, describe, restore
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.influence.agreement import Estimate
from influence_ssl_jax.influence.audit import Audit, absolute_damping, audit
from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.fidelity import Errors, Fidelity, fidelity
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.report.words import decimal, percent

if TYPE_CHECKING:
    from influence_ssl_jax.commands.audit import AuditCommand

BOUNDS, CALIBRATED, AUDIT = "audit.parquet", "calibrated.parquet", "audit.json"


def run(settings: "AuditCommand", out: Console) -> None:
    """Certify a sample, compare score and baselines with it, calibrate every score.

    Raises:
        StoreError: The folder holds no finished run.
        InfluenceError: It was scored from other data or by another version, or nothing of it can be certified.
    """
    scored = ScoredRun.load(settings.folder)
    recorded = scored.record["configuration"]
    made = restore({name: value for name, value in recorded.items() if name != "input"}, [Score])
    prepared = prepare(made, out)
    if prepared.source.fingerprint() != scored.record["identity"]["data"]:
        raise InfluenceError(
            f"The images of {settings.folder} have changed since they were scored. Score them again, then audit."
        )
    problem = problem_over(made, prepared)
    damping = _damping(scored.record["damping"]["resolved"], problem, made, settings.audit)
    with out.status(f"certifying {min(settings.audit.examples, len(prepared.source))} images"):
        bounds = audit(
            problem,
            prepared.source,
            prepared.transform,
            damping,
            made.scoring,
            settings.audit,
            prepared.measurement,
        )
    found = judged(scored, bounds, settings.calibration)
    _write(settings.folder, scored, bounds, settings.calibration)
    record = {
        "configuration": describe(settings),
        "damping": float(damping),
        "audited": bounds.num_rows,
        "relative_width": float(np.nanmedian(_relative_width(bounds))),
        "fidelity": {name: _plain(item) for name, item in found.items()},
    }
    (settings.folder / AUDIT).write_text(json.dumps(record, indent=2), encoding="utf-8")
    say(found, bounds, settings.calibration, out)
    out.print(f"Calibrated scores: {settings.folder / CALIBRATED}", highlight=False, markup=False, soft_wrap=True)


def judged(scored: ScoredRun, bounds: pa.Table, calibration: Calibration) -> dict[str, Fidelity]:
    """The score and each baseline against the bounds."""
    place = {index: row for row, index in enumerate(scored.table["index"].to_pylist())}
    rows = np.array([place[index] for index in bounds["index"].to_pylist()])
    lower, upper = (bounds[name].to_numpy() for name in ("lower", "upper"))
    loss = scored.numbers("alignment_loss")[rows]
    names = ("score", *scored.baselines)
    return {name: fidelity(scored.numbers(name)[rows], lower, upper, loss, calibration) for name in names}


def say(found: dict[str, Fidelity], bounds: pa.Table, calibration: Calibration, out: Console) -> None:
    """One row for the score and each baseline."""
    width = np.nanmedian(_relative_width(bounds))
    shown = Table(
        box=SIMPLE_HEAD, pad_edge=False, title=f"Against {bounds.num_rows} certified scores", title_justify="left"
    )
    heads = ("", "error as it is", "one factor", "calibrated", "Spearman", "beyond the loss", "coverage")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="right" if number else "left")
    for name, item in found.items():
        errors = (percent(error.median) for error in (item.raw, item.proportional, item.calibrated))
        ranks = (f"{decimal(e.value)} ({decimal(e.low)} to {decimal(e.high)})" for e in (item.spearman, item.partial))
        shown.add_row(name.replace("_", " "), *errors, *ranks, percent(item.coverage.value))
    out.print(shown)
    out.print(
        f"Errors are medians, relative to the middle of bounds that are {percent(width)} wide; calibrated ones are of "
        f"images that the calibration has not seen. Coverage is asked to be {percent(calibration.level)}.",
        style="dim",
        highlight=False,
    )


def _damping(resolved: Plain, problem: Problem, made: Score, settings: Audit) -> Float[Array, ""]:
    """The backend's own λ where that is one number; else, from the mean eigenvalue of the whole matrix."""
    if isinstance(resolved, dict):
        return absolute_damping(problem, made.scoring.damping, settings)
    return jnp.asarray(resolved, jax.tree.leaves(problem.params)[0].dtype)


def _write(folder: Path, scored: ScoredRun, bounds: pa.Table, calibration: Calibration) -> None:
    place = {index: row for row, index in enumerate(scored.table["index"].to_pylist())}
    rows = np.array([place[index] for index in bounds["index"].to_pylist()])
    lower, upper = (bounds[name].to_numpy() for name in ("lower", "upper"))
    every = calibration.fit(scored.score[rows], lower, upper)(scored.score)
    pq.write_table(bounds, folder / BOUNDS)
    table = scored.table.select(["index", "id"])
    for name, values in (("score", every.score), ("score_lo", every.low), ("score_hi", every.high)):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, folder / CALIBRATED)


def _relative_width(bounds: pa.Table) -> np.ndarray:
    lower, upper = (bounds[name].to_numpy() for name in ("lower", "upper"))
    return (upper - lower) / ((upper + lower) / 2)


def _plain(value: Fidelity | Estimate | Errors | float) -> Plain:
    if isinstance(value, tuple):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return float(value)
