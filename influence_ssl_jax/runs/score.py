"""Score a data set into a folder."""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from jaxtyping import Int
from rich.console import Console
from scipy.stats import spearmanr

from influence_ssl_jax import checkpoint, provenance
from influence_ssl_jax.configuration import Plain, describe, fingerprint, restore
from influence_ssl_jax.data import ToInput, resident
from influence_ssl_jax.data.source import OpenSource, Skipped
from influence_ssl_jax.errors import StoreError
from influence_ssl_jax.ihvp.backend import Resolved
from influence_ssl_jax.parallel import (
    agreed,
    all_devices,
    barrier,
    batches_of,
    first_only,
    is_first,
    local_devices,
    part_of,
    replicated,
    start,
)
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.run_log import Pace, RunLog, watched
from influence_ssl_jax.runs import objectives
from influence_ssl_jax.runs.settings import Parts, ScoreRun
from influence_ssl_jax.scoring.fitting import SplitProblem, fitted, shapes
from influence_ssl_jax.scoring.neighbours import streamed_knn_distance
from influence_ssl_jax.scoring.scores import Scorer
from influence_ssl_jax.scoring.stream import Scored, embedding_matrix, stream
from influence_ssl_jax.store import RUN, SCORES, ScoreStore, digest_of, load_fitted, save_fitted
from influence_ssl_jax.train.export import Trained, load
from influence_ssl_jax.types import PyTree


def fill(store: ScoreStore, scored: Iterable[Scored], size: int, parts: Parts, log: RunLog, out: Console) -> float:
    """Write scored batches as parts, with a bar, a heartbeat, and a line in the log for every part; seconds of writing."""
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    written = time.monotonic()
    pace = Pace(size, len(store.done()))
    spent = 0.0

    def write() -> None:
        nonlocal spent
        began = time.monotonic()
        if tables:
            store.append(pa.concat_tables(tables))
        store.skip(skipped)
        spent += time.monotonic() - began
        log.event("part", rows=sum(map(len, tables)), skipped=len(skipped), **pace.facts())
        tables.clear()
        skipped.clear()

    with watched(out, log, "scoring", pace) as watch:
        for batch in scored:
            tables.append(batch.table)
            skipped.extend(batch.skipped)
            watch.advance(batch.table.num_rows + len(batch.skipped))
            if sum(map(len, tables)) >= parts.rows or time.monotonic() - written > parts.seconds:
                write()
                written = time.monotonic()
        if tables or skipped:
            write()
    return spent


def fitted_scorer(
    settings: ScoreRun, problem: Problem, measurement: Objective, store: ScoreStore, log: RunLog, out: Console
) -> Scorer:
    """Fit, or take up the fit that an earlier run left in the folder, and get ready to score on this process's devices.

    Raises:
        StoreError: Scores of another fit are in the folder.
        IndefiniteError: C + λI is not positive definite.
    """
    with out.status("fitting the curvature"):
        log.beat("fitting")
        split = SplitProblem(problem, all_devices()) if all_devices().size > 1 else None
        state, size = _state(settings, problem, split, store)
        log.event("fitted" if size is None else "fit taken up", devices=jax.device_count(), batch_size=size)
        scoring = settings.scoring if size is None else dataclasses.replace(settings.scoring, batch_size=size)
        scorer = Scorer.of(_for_scoring(problem), state, settings.backend, scoring, measurement)
        store.bind(f"{digest_of(state)} in batches of {scorer.batch_size}")
        if size is None:
            first_only(lambda: save_fitted(store.folder, state, fingerprint(store.identity), scorer.batch_size))
    return scorer


def scoring_mesh() -> Mesh | None:
    """The devices that this process scores on; None where there is one."""
    return local_devices() if all_devices().size > 1 else None


def _state(
    settings: ScoreRun, problem: Problem, split: SplitProblem | None, store: ScoreStore
) -> tuple[PyTree, int | None]:
    """The state, and the batch size that was settled with it where an earlier run fitted it."""
    backend, seed, local = settings.backend, settings.scoring.seed, local_devices()
    expected = shapes(problem, backend, seed) if split is None else split.shapes(backend, seed)
    held = load_fitted(store.folder, *expected, fingerprint(store.identity))
    if agreed(held is not None):
        if held is None:
            raise StoreError(f"This process cannot read the fitted curvature in {store.folder}; is the folder shared?")
        state, size = held
        return (state if split is None else replicated(state, local)), size
    return (fitted(problem, backend, seed) if split is None else split.fitted(backend, seed, local)), None


def _for_scoring(problem: Problem) -> Problem:
    """The problem as scoring reads it: parameters on every device of this process, one batch for the shape of an image."""
    first = jax.tree.map(lambda leaf: leaf[:1], problem.batches)
    if all_devices().size == 1:
        return dataclasses.replace(problem, batches=first)
    place = local_devices()
    params, frozen, batches = (replicated(tree, place) for tree in (problem.params, problem.frozen, first))
    return dataclasses.replace(problem, params=params, frozen=frozen, batches=batches)


AGREEMENT = 512
"""Images that are scored in float32 too where layers compute in 16 bits."""


def score(settings: ScoreRun, out: Console) -> None:
    """Score every example of the source that has no score yet, then write the table and the record.

    Raises:
        StoreError: The folder holds something else, or is in use.
        CheckpointError: The encoder is absent or damaged.
        DataError: The source is.
        IndefiniteError: C + λI is not positive definite.
    """
    start(settings.distributed)
    out = out if is_first() else Console(quiet=True)
    encoder, transform, measured, source = given = prepare(settings, out)
    with ScoreStore.open(settings.out, identity(settings, encoder, transform, source), len(source)) as store:
        log = RunLog(settings.out)
        todo = store.todo()
        if agreed(not len(todo) and (settings.out / RUN).exists()):
            out.print(f"Nothing to do: {settings.out / SCORES} is finished.", highlight=False, markup=False)
            return
        log.event("start", todo=len(todo), total=len(source), recomputed=store.lost, command=provenance.command())
        if len(todo) < len(source):
            out.print(f"Going on: {len(source) - len(todo)} of {len(source)} images are done.", highlight=False)
        problem = problem_over(settings, given, batches_of(all_devices()) if all_devices().size > 1 else None)
        scorer = fitted_scorer(settings, problem, measured, store, log, out)
        recorded = {**facts(settings, transform, scorer), **rank_agreement(settings, given, scorer, out)}
        spent: defaultdict[str, float] = defaultdict(float)
        scored = stream(scorer, source, transform, share(todo, scorer), scoring_mesh(), spent)
        spent["disk"] = fill(store, scored, len(source), settings.parts, log, out)
        recorded["seconds_waiting_for"] = {name: round(seconds, 3) for name, seconds in spent.items()}
        barrier("scored")
        first_only(lambda: finish(settings, given, recorded, store, log, out))


def rank_agreement(settings: ScoreRun, given: "Prepared", scorer: Scorer, out: Console) -> dict[str, Plain]:
    """Spearman's correlation of 16-bit scores with those in float32, over the first images; nothing for float32."""
    if settings.precision == "float32":
        return {}
    exact = objectives.measurement(given.encoder, settings.output, settings.perturbation, settings.measurement)
    sample = np.arange(min(AGREEMENT, len(given.source)))
    ranked = []
    for each in (scorer, dataclasses.replace(scorer, measurement=exact)):
        parts = stream(each, given.source, given.transform, sample, scoring_mesh())
        ranked.append(np.concatenate([part.table["score"].to_numpy() for part in parts]))
    fine = np.isfinite(ranked[0]) & np.isfinite(ranked[1])
    found = float(np.asarray(spearmanr(ranked[0][fine], ranked[1][fine]))[0])
    out.print(f"bfloat16 against float32: rank correlation {found:.4f} over {fine.sum()} images.", highlight=False)
    return {"bfloat16": {"rank_correlation": found, "images": int(fine.sum())}}


def share(todo: Int[np.ndarray, " todo"], scorer: Scorer) -> Int[np.ndarray, " share"]:
    """This process's share of the examples to score: whole batches."""
    batch = todo // scorer.batch_size
    return todo[np.isin(batch, part_of(np.unique(batch)))]


def finish(
    settings: ScoreRun, given: "Prepared", recorded: dict[str, Plain], store: ScoreStore, log: RunLog, out: Console
) -> None:
    """Put the parts of all processes together, with the distance to the nearest neighbours."""
    store.refresh()
    with out.status("nearest neighbours"):
        log.beat("nearest neighbours")
        distance = streamed_knn_distance(
            lambda: (embedding_matrix(table["embedding"]) for table in store.windows(["embedding"])),
            settings.scoring.neighbours,
            settings.scoring.seed,
        )
    table = store.finish(given.source.attributes(), {"knn_distance": distance}, recorded)
    counts = json.loads((settings.out / RUN).read_text())["counts"]
    log.event("finished", **counts, seconds_waiting_for=recorded["seconds_waiting_for"])
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "size")
    out.print(f"{counts['size']} images: {said}.", highlight=False)
    out.print(f"Scores: {table}", highlight=False, markup=False, soft_wrap=True)


class Prepared(NamedTuple):
    """What a scoring run reads.

    Attributes:
        encoder: The trained network.
        transform: From an image to its input.
        measurement: What is scored.
        source: The images.
    """

    encoder: Trained
    transform: ToInput
    measurement: Objective
    source: OpenSource


def prepare(settings: ScoreRun, out: Console) -> Prepared:
    """Load the encoder and open the images, saying what is noteworthy about them."""
    path = settings.encoder / "encoder" if settings.encoder.is_dir() else settings.encoder
    encoder, recorded = load(path), checkpoint.describe(path).get("input")
    height, width, channels = encoder.image_shape
    transform = restore(recorded, [ToInput]) if recorded else ToInput(height, width, 1 if channels == 1 else 3)
    measured = objectives.measurement(
        encoder, settings.output, settings.perturbation, settings.measurement, settings.precision
    )
    source = settings.source.open()
    for note in source.notes():
        out.print(f"note: {note}", highlight=False, markup=False)
    return Prepared(encoder, transform, measured, source)


def problem_over(settings: ScoreRun, given: Prepared, part: Callable[[int], range] | None = None) -> Problem:
    """The matrix that is inverted, over random images of the source; with those batches alone that `part` names."""
    chosen, seed = settings.curvature, settings.scoring.seed
    batches = resident(given.source, given.transform, chosen.examples, chosen.batch_size, seed, part)
    return objectives.problem(given.encoder, settings.output, given.measurement, chosen, batches)


def identity(settings: ScoreRun, encoder: Trained, transform: ToInput, source: OpenSource) -> Plain:
    """Everything that a score depends on; where the encoder, the data and the scores lie is not among it."""
    places = ("out", "encoder", "source", "parts", "distributed")
    device = provenance.device()
    return {
        "configuration": {name: value for name, value in describe(settings).items() if name not in places},
        "encoder": provenance.tree_digest({"params": encoder.params, "frozen": encoder.frozen}),
        "pretrain": describe(encoder.settings),
        "input": describe(transform),
        "data": source.fingerprint(),
        "versions": provenance.versions(provenance.DECISIVE),
        "device": {name: device[name] for name in ("platform", "float64", "matmul_precision")},
    }


def facts(settings: ScoreRun, transform: ToInput, scorer: Scorer) -> dict[str, Plain]:
    """What `run.json` says of how the scores were made."""
    return {
        "configuration": {**describe(settings), "input": describe(transform)},
        "command": provenance.command(),
        "seeds": {"seed": settings.scoring.seed},
        "batch_size": scorer.batch_size,
        "damping": {"relative": settings.scoring.damping.relative, "resolved": resolved(scorer.damping)},
        "device": provenance.device(),
        "versions": provenance.versions(),
    }


def resolved(damping: Resolved) -> Plain:
    """λ in numbers: one, or one per block."""
    return {name: float(value) for name, value in damping.items()} if isinstance(damping, dict) else float(damping)
