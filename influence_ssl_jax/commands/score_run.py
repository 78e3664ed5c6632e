"""A scoring run: everything that `influence-ssl score` does, one step after the other."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from influence_ssl_jax import checkpoint, provenance
from influence_ssl_jax.commands import problem_of
from influence_ssl_jax.configuration import Plain, describe, restore
from influence_ssl_jax.data import ToInput, resident
from influence_ssl_jax.data.source import OpenSource, Skipped
from influence_ssl_jax.ihvp.backend import Resolved
from influence_ssl_jax.influence.baselines import knn_distance
from influence_ssl_jax.influence.scores import Scorer
from influence_ssl_jax.influence.stream import Scored, stream
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.store import RUN, SCORES, ScoreStore
from influence_ssl_jax.train.export import Trained, load

if TYPE_CHECKING:
    from influence_ssl_jax.commands.score import Score

ROWS, SECONDS = 2048, 20.0
"""A part is written after so many rows or seconds: what a kill can cost."""


def score(settings: "Score", out: Console) -> None:
    """Score every example of the source that has no score yet, then write the table and the record.

    Raises:
        StoreError: The folder holds something else, or is in use.
        CheckpointError: The encoder is absent or damaged.
        DataError: The source is.
        IndefiniteError: C + λI is not positive definite.
    """
    encoder, transform, measured, source = given = prepare(settings, out)
    with ScoreStore.open(settings.out, identity(settings, encoder, transform, source), len(source)) as store:
        todo = np.setdiff1d(np.arange(len(source)), store.done())
        if not len(todo) and (settings.out / RUN).exists():
            out.print(f"Nothing to do: {settings.out / SCORES} is finished.", highlight=False, markup=False)
            return
        if len(todo) < len(source):
            out.print(f"Going on: {len(source) - len(todo)} of {len(source)} images are done.", highlight=False)
        problem = problem_over(settings, given)
        with out.status("fitting the curvature"):
            scorer = Scorer.fit(problem, settings.backend, settings.scoring, measured)
        fill(store, stream(scorer, source, transform, todo), len(source), out)
        distance = knn_distance(store.column("embedding"), settings.scoring.neighbours, settings.scoring.seed)
        table = store.finish(source.attributes(), {"knn_distance": distance}, facts(settings, transform, scorer))
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


def prepare(settings: "Score", out: Console) -> Prepared:
    """Load the encoder and open the images, saying what is noteworthy about them."""
    path = settings.encoder / "encoder" if settings.encoder.is_dir() else settings.encoder
    encoder, recorded = load(path), checkpoint.describe(path).get("input")
    height, width, channels = encoder.image_shape
    transform = restore(recorded, [ToInput]) if recorded else ToInput(height, width, 1 if channels == 1 else 3)
    measured = problem_of.measurement(encoder, settings.output, settings.perturbation, settings.measurement)
    source = settings.source.open()
    for note in source.notes():
        out.print(f"note: {note}", highlight=False, markup=False)
    return Prepared(encoder, transform, measured, source)


def problem_over(settings: "Score", given: Prepared) -> Problem:
    """The matrix that is inverted, over random images of the source."""
    chosen, seed = settings.curvature, settings.scoring.seed
    batches = resident(given.source, given.transform, chosen.examples, chosen.batch_size, seed)
    return problem_of.problem(given.encoder, settings.output, given.measurement, chosen, batches)


def fill(store: ScoreStore, scored: Iterable[Scored], size: int, out: Console) -> None:
    """Write scored batches as parts of many rows, with a bar."""
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    written = time.monotonic()

    def write() -> None:
        if tables:
            store.append(pa.concat_tables(tables))
        store.skip(skipped)
        tables.clear()
        skipped.clear()

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, refresh_per_second=2) as progress:
        task = progress.add_task("", total=size, completed=len(store.done()))
        for batch in scored:
            tables.append(batch.table)
            skipped.extend(batch.skipped)
            progress.advance(task, batch.table.num_rows + len(batch.skipped))
            if sum(map(len, tables)) >= ROWS or time.monotonic() - written > SECONDS:
                write()
                written = time.monotonic()
        write()


def identity(settings: "Score", encoder: Trained, transform: ToInput, source: OpenSource) -> Plain:
    """Everything that a score depends on; where the encoder, the data and the scores lie is not among it."""
    places = ("out", "encoder", "source")
    return {
        "configuration": {name: value for name, value in describe(settings).items() if name not in places},
        "encoder": provenance.tree_digest({"params": encoder.params, "frozen": encoder.frozen}),
        "pretrain": describe(encoder.settings),
        "input": describe(transform),
        "data": source.fingerprint(),
        "versions": provenance.versions(provenance.DECISIVE),
        "device": {name: value for name, value in provenance.device().items() if name in ("platform", "float64")},
    }


def facts(settings: "Score", transform: ToInput, scorer: Scorer) -> dict[str, Plain]:
    """What `run.json` says of how the scores were made."""
    return {
        "configuration": {**describe(settings), "input": describe(transform)},
        "command": command(),
        "seeds": {"seed": settings.scoring.seed},
        "damping": {"relative": settings.scoring.damping.relative, "resolved": resolved(scorer.damping)},
        "device": provenance.device(),
        "versions": provenance.versions(),
    }


def command() -> list[str]:
    """The command line that is running; empty where it is not this program's."""
    ours = Path(sys.argv[0]).name == "influence-ssl"
    return ["influence-ssl", *(word for word in sys.argv[1:] if word != "--debug")] if ours else []


def resolved(damping: Resolved) -> Plain:
    """λ in numbers: one, or one per block."""
    return {name: float(value) for name, value in damping.items()} if isinstance(damping, dict) else float(damping)
