"""The certificates of an audit: kept as they are made, gone on with after a stop."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Key
from rich.console import Console

from influence_ssl_jax import provenance, trees
from influence_ssl_jax.augment.views import Views
from influence_ssl_jax.commands.score import Score
from influence_ssl_jax.commands.score_run import Prepared, problem_over
from influence_ssl_jax.configuration import Plain, describe
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.influence.audit import Audited, absolute_damping, certified, sample
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.provenance import command
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.run_log import Pace, RunLog, Watch, watched
from influence_ssl_jax.store.files import lock
from influence_ssl_jax.store.identity import claim
from influence_ssl_jax.store.manifest import Manifest
from influence_ssl_jax.store.score_table import skipped_table

if TYPE_CHECKING:
    from influence_ssl_jax.commands.audit import AuditCommand

WORK = "audit"


@dataclasses.dataclass(frozen=True)
class DrawnInSingle(Views):
    """Other views, drawn in float32 whatever the type of the image: the pixels that a float32 run scored.

    Attributes:
        views: What draws.
    """

    views: Views

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "views out_height out_width channels"]:
        """Draw in float32."""
        return self.views(key, image.astype(jnp.float32)).astype(image.dtype)


class Bounds(NamedTuple):
    """What certifying a sample gives.

    Attributes:
        table: `index, id, lower, upper, products, reason` of every example of the sample, those that could not be read
            included, in order of index.
        damping: λ.
        resumed: Examples that were there already.
        recomputed: Examples that were there and damaged.
    """

    table: pa.Table
    damping: float
    resumed: int
    recomputed: int


def bounds(settings: "AuditCommand", scored: ScoredRun, made: Score, prepared: Prepared, out: Console) -> Bounds:
    """Certify the examples of the sample that have not been, batch by batch.

    Raises:
        StoreError: The folder holds certificates of other settings, or is in use.
        InfluenceError: None of the sample could be read.
    """
    folder = settings.folder / WORK
    folder.mkdir(exist_ok=True)
    wide = jax.enable_x64(True) if settings.precision == "float64" else contextlib.nullcontext()
    with lock(folder), wide:
        claim(folder, _identity(settings, scored))
        manifest, log = Manifest.load(folder / "parts"), RunLog(folder)
        chosen = sample(settings.audit, len(prepared.source))
        listed = int(np.isin(chosen, manifest.indices()).sum())
        manifest.check(np.zeros(len(prepared.source), bool))
        there = np.isin(chosen, manifest.indices())
        resumed, recomputed = int(there.sum()), listed - int(there.sum())
        log.event("start", todo=len(chosen) - resumed, total=len(chosen), recomputed=recomputed, command=command())
        problem, measurement = _in_precision(problem_over(made, prepared), prepared.measurement, settings.precision)
        damping = _damping(scored.record["damping"]["resolved"], problem, made, settings)
        if resumed < len(chosen):
            _announce(settings, problem, made, len(chosen), resumed, recomputed, out)
            todo = _in_place(chosen, there, settings.audit.batch_size)
            given = (problem, prepared.source, prepared.transform, todo, damping, made.scoring)
            with watched(out, log, "certifying", Pace(len(chosen), resumed)) as watch:
                log.beat("certifying", total=len(chosen), done=resumed)
                for part in certified(*given, settings.audit, measurement):
                    _keep(part, manifest, log, watch)
        log.event("finished", sample=len(chosen), resumed=resumed, recomputed=recomputed)
        return Bounds(_collected(manifest, chosen), float(damping), resumed, recomputed)


def _in_place(chosen: np.ndarray, there: np.ndarray, size: int) -> np.ndarray:
    """The sample in its batches, those left out that are whole; −1 for what is there, so that the rest keeps its rows.

    What was damaged is so computed again to the same bits.
    """
    rows = np.where(there, -1, chosen)
    return np.concatenate([rows[k : k + size] for k in range(0, len(rows), size) if (rows[k : k + size] >= 0).any()])


def _keep(part: Audited, manifest: Manifest, log: RunLog, watch: Watch) -> None:
    """Write a batch, and say so."""
    if part.table.num_rows:
        manifest.add("scored", part.table, 0.0, "")
    if part.skipped:
        manifest.add("skipped", skipped_table(part.skipped), 0.0, "")
    watch.advance(part.table.num_rows + len(part.skipped))
    log.event("part", rows=part.table.num_rows, skipped=len(part.skipped), **watch.pace.facts())


def _collected(manifest: Manifest, chosen: np.ndarray) -> pa.Table:
    """Every row of the sample; an example that could not be read has no bounds, and the reason."""
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
    settings: "AuditCommand", problem: Problem, made: Score, size: int, resumed: int, recomputed: int, out: Console
) -> None:
    """What there is to do, in products with C."""
    if recomputed:
        out.print(f"{recomputed} certificates were damaged; they are computed again.", highlight=False)
    if resumed:
        out.print(f"Going on: {resumed} of {size} images are certified.", highlight=False)
    draws, images = made.scoring.draws, problem.batches.index.size
    out.print(
        f"{size - resumed} images, {draws} draws each, at most {settings.audit.steps} products with C over {images:,} "
        f"images and {trees.size(problem.params):,} parameters a draw, in {settings.precision}.",
        highlight=False,
        style="dim",
    )


def _identity(settings: "AuditCommand", scored: ScoredRun) -> Plain:
    """Everything that a certificate depends on; the size of the sample is not among it."""
    return {
        "scores": scored.record["fingerprint"],
        "audit": {name: value for name, value in describe(settings.audit).items() if name != "examples"},
        "precision": settings.precision,
        "versions": provenance.versions(provenance.DECISIVE),
    }


def _in_precision(problem: Problem, measurement: Objective, precision: str) -> tuple[Problem, Objective]:
    """The problem and the measurement in float64, over the same pixels."""
    if precision == "float32":
        return problem, measurement
    single = dataclasses.replace(problem.objective, views=DrawnInSingle(problem.objective.views))
    measured = dataclasses.replace(measurement, views=DrawnInSingle(measurement.views))
    params, frozen = trees.astype((problem.params, problem.frozen), jnp.float64)
    return dataclasses.replace(problem, params=params, frozen=frozen, objective=single), measured


def _damping(resolved: Plain, problem: Problem, made: Score, settings: "AuditCommand") -> Float[Array, ""]:
    """The backend's own λ where that is one number; else, from the mean eigenvalue of the whole matrix."""
    if isinstance(resolved, dict):
        return absolute_damping(problem, made.scoring.damping, settings.audit)
    return jnp.asarray(resolved, jax.tree.leaves(problem.params)[0].dtype)
