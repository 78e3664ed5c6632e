"""Score a data set into a folder."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Shaped

from influence_ssl_jax import provenance, randomness
from influence_ssl_jax.configuration import Plain, describe, fingerprint, restore
from influence_ssl_jax.data import SOURCES, Source, ToInput
from influence_ssl_jax.data.attributes import rename_taken, storable
from influence_ssl_jax.data.examples import OpenSource, Skipped
from influence_ssl_jax.data.loader import describe_waiting
from influence_ssl_jax.data.sharing import SharedReading
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.errors import InfluenceError, SkippedError, StoreError
from influence_ssl_jax.evaluation.statistics import spearman, top_overlap
from influence_ssl_jax.ihvp.backend import Resolved
from influence_ssl_jax.ihvp.gram import Gram
from influence_ssl_jax.parallel import (
    agree_with_first,
    all_devices,
    barrier,
    batches_of,
    first_only,
    gather,
    gather_on_host,
    is_first,
    is_out_of_memory,
    local_devices,
    min_over_processes,
    own_part,
    replicate,
    split,
    start,
    sum_over_processes,
)
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.progress import Note, Progress, Together, Written, silent, stage
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.report.analysis import TRUTH
from influence_ssl_jax.report.scored_run import SAMPLE
from influence_ssl_jax.run_log import Pace, RunLog, watch_stage
from influence_ssl_jax.runs.changed_images import (
    digests_as_text,
    fitted_images,
    forget_changed,
    refuse_other_images,
    refuse_two_versions,
)
from influence_ssl_jax.runs.prepare import (
    Prepared,
    absolute,
    describe_encoder,
    draw_problem,
    form_measurement,
    names_function,
    prepare,
)
from influence_ssl_jax.runs.settings import Parts, ScoreRun, describe_without
from influence_ssl_jax.scoring.fitting import DiskFit, SplitProblem, fit_checked, shapes
from influence_ssl_jax.scoring.memory import check_fit
from influence_ssl_jax.scoring.neighbours import Neighbours, reference_size, stream_neighbours
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import Scored, embedding_matrix, find_batches, stream
from influence_ssl_jax.scoring.table import EMBEDDING, IN_CURVATURE_SET, ORDER, neighbour_columns
from influence_ssl_jax.store import RUN, SCORES, ScoreStore, digest_of, load_fitted, read_sealed, save_fitted
from influence_ssl_jax.store.distances import Distances
from influence_ssl_jax.store.identity import IDENTITY
from influence_ssl_jax.store.rows import ROWS, complete_rows
from influence_ssl_jax.types import PyTree


def write_parts(
    store: ScoreStore, scored: Iterable[Scored], size: int, parts: Parts, log: RunLog, progress: Progress
) -> Generator[int, None, float]:
    """Write scored batches to the store in parts, and log each.

    Whatever ends it (its last batch, an error, or `close` of the generator), finished scores are written.

    Args:
        store: The store of the run.
        scored: The scored batches.
        size: Number of images of the whole run.
        parts: How often a part is written.
        log: The log of the run.
        progress: Called as the work advances.

    Yields:
        After each batch, the number that follows its last example.

    Returns:
        Seconds that writing took.
    """
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    written = time.monotonic()
    pace = Pace(size, store.finished)
    spent = 0.0

    def write() -> None:
        nonlocal spent
        began = time.monotonic()
        rows, unusable = list(tables), list(skipped)
        tables.clear()  # before writing, so that an interruption here cannot write rows twice
        skipped.clear()
        if rows:
            store.append(pa.concat_tables(rows))
        store.skip(unusable)
        spent += time.monotonic() - began
        log.event("part", rows=sum(map(len, rows)), skipped=len(unusable), **pace.facts())

    with watch_stage(progress, log, "scoring", pace, log.of_others) as watch:
        try:
            for batch in scored:
                tables.append(batch.table)
                skipped.extend(batch.skipped)
                watch.advance(batch.table.num_rows + len(batch.skipped))
                if sum(map(len, tables)) >= parts.rows or time.monotonic() - written > parts.seconds:
                    write()
                    written = time.monotonic()
                yield 1 + max([each.index for each in batch.skipped] + batch.table["index"].to_pylist(), default=-1)
        finally:  # whatever ends the run (a signal, a lost disk), finished scores are written
            if tables or skipped:
                write()
    return spent


_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Shared:
    """What encoders that are scored together share: images and memory.

    Attributes:
        source: The images, whose notes are reported.
        reading: Reads each image once.
        held: Bytes on each device that fitted encoders hold until the end.
        working: Bytes on each device for the largest of their batches; one encoder scores at a time.
    """

    source: OpenSource
    reading: SharedReading
    held: int = 0
    working: int = 0

    def add(self, scorer: Scorer) -> None:
        """Count the memory of a fitted encoder."""
        need = scorer.memory()
        self.held += need.fixed
        self.working = max(self.working, scorer.batch_size * need.per_example)


def fit_scorer(
    settings: ScoreRun,
    problem: Problem,
    used: dict[int, bytes],
    measurement: Objective,
    store: ScoreStore,
    log: RunLog,
    progress: Progress,
    shared: Shared | None = None,
) -> Scorer:
    """Fit the backend or load an earlier fit, and make a scorer.

    Args:
        settings: The settings of the run.
        problem: The problem whose matrix is inverted.
        used: Digests of the images that it is averaged over, by index.
        measurement: The objective that is scored.
        store: The store that keeps the fit.
        log: The log of the run.
        progress: Called at every stage.
        shared: What the encoders share that are scored together; None for one encoder.

    Returns:
        The scorer, on this process's devices.

    Raises:
        StoreError: The folder holds scores of another fit, or processes have different fits.
        DataError: Images of the curvature set have changed since the fit.
        IndefiniteError: C + λI is not positive definite.
    """
    if settings.scoring.leave_own_out:
        settings.backend.check_own(problem)
    with stage(progress, "fitting the curvature (the first time, it compiles)"):
        log.beat("fitting")
        divided = SplitProblem(problem, all_devices()) if all_devices().size > 1 else None
        held, working = (0, 0) if shared is None else (shared.held, shared.working)
        state, notes = _fit_or_load(settings, problem, divided, store, held + working)
        size = None if notes is None else notes["batch_size"]
        log.event("fitted" if size is None else "fit taken up", devices=jax.device_count(), batch_size=size)
        scoring = settings.scoring if size is None else dataclasses.replace(settings.scoring, batch_size=size)
        scorer = Scorer.of(_place_for_scoring(problem), state, settings.backend, scoring, measurement, held)
        if notes is not None:
            refuse_other_images(digests_as_text(used), notes["images"])
        else:
            log.beat("trying the batch size")
            scorer = choose_batch_size(scorer, scoring_mesh())
        whole = gather_on_host(state)
        store.bind(f"{digest_of(whole)} in batches of {scorer.batch_size}")
        if notes is None:
            kept = {"batch_size": scorer.batch_size, "images": digests_as_text(used)}
            first_only(lambda: save_fitted(store.folder, whole, fingerprint(store.identity), kept))
    if shared is not None:
        shared.add(scorer)
    return scorer


def choose_batch_size(scorer: Scorer, mesh: Mesh | None) -> Scorer:
    """Halve the batch until one is scored without running out of memory.

    All processes choose the same size. The batch that is tried compiles the program that scores.

    Args:
        scorer: The scorer, with the batch size to begin with.
        mesh: The devices of this process; None is the default device.

    Raises:
        InfluenceError: There is no memory even for one image at a time.
    """
    size = min_over_processes(scorer.batch_size)
    while True:
        tried = dataclasses.replace(scorer, settings=dataclasses.replace(scorer.settings, batch_size=size))
        fits = min_over_processes(int(_fits(tried, mesh)))
        if fits:
            return tried
        if size == 1:
            raise InfluenceError(
                "The device runs out of memory while it scores one image at a time. Take fewer --draws, a smaller rank, or "
                "a device with more memory."
            )
        _log.warning("batches of %s images run out of memory; trying %s", size, size // 2)
        size //= 2


def _fits(scorer: Scorer, mesh: Mesh | None) -> bool:
    """Test whether scoring one batch fits this process's devices' memory."""
    first = jax.tree.map(lambda leaf: leaf[0, :1], scorer.problem.batches)
    rows = scorer.batch_size * (1 if mesh is None else mesh.size)
    words = np.broadcast_to(
        np.asarray(jax.random.key_data(first.key)), (rows, *jax.random.key_data(first.key).shape[1:])
    )
    batch = dataclasses.replace(
        first,
        image=np.zeros((rows, *first.image.shape[1:]), first.image.dtype),
        key=jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(first.key)),
        index=np.zeros(rows, np.int32),
        label=None if first.label is None else np.full(rows, -1, np.int32),
    )
    try:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            jax.block_until_ready(scorer(jax.device_put(batch) if mesh is None else split(batch, mesh)))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def scoring_mesh() -> Mesh | None:
    """Return the mesh of this process's devices; None for one device."""
    return local_devices() if all_devices().size > 1 else None


def _fit_or_load(
    settings: ScoreRun, problem: Problem, divided: SplitProblem | None, store: ScoreStore, held: int
) -> tuple[PyTree, dict[str, Plain] | None]:
    """Return the fitted state, and an earlier fit's notes or None.

    Other encoders hold `held` bytes on each device.
    """
    backend, seed, local = settings.backend, settings.scoring.seed, local_devices()
    if isinstance(backend, Gram) and backend.rows == "disk":
        _refuse_several(all_devices().size)
        return _fit_or_load_from_disk(backend, problem, store, held)
    expected = shapes(problem, backend, seed) if divided is None else divided.shapes(backend, seed)
    check_fit(expected.leaves, expected.lengths, backend, local.size, held)
    to_memory = jnp.asarray if divided is None else np.asarray  # of the host: one device need not have room for all
    loaded = load_fitted(store.folder, *expected[:2], fingerprint(store.identity), to_memory)
    if agree_with_first(loaded is not None):
        if loaded is None:
            raise StoreError(f"This process cannot read the fitted curvature in {store.folder}; is the folder shared?")
        state, notes = loaded
        return (state if divided is None else replicate(state, local)), notes
    return (fit_checked(problem, backend, seed) if divided is None else divided.fit(backend, seed, local)), None


def _refuse_several(devices: int) -> None:
    """Refuse more than one device for rows in a file."""
    if devices > 1:
        raise InfluenceError(
            f"Gram(rows='disk') scores on one device, got {devices}. Take rows='memory', which they share, or make one "
            "device visible to this process."
        )


def _fit_or_load_from_disk(
    backend: Gram, problem: Problem, store: ScoreStore, held: int
) -> tuple[PyTree, dict[str, Plain] | None]:
    """Return the state of a Gram with rows on a disk.

    Its notes come too, or None. Other encoders hold `held` bytes.

    Rows that are missing or damaged are formed; a state that belongs to other rows is computed again.
    """
    owner, fit = fingerprint(store.identity), DiskFit(problem, backend, store.folder / ROWS)
    expected = fit.shapes()
    check_fit(expected.leaves, expected.lengths, backend, held=held)
    loaded = load_fitted(store.folder, *expected[:2], owner)
    if loaded is None:
        fit.check()
    digests = complete_rows(owner, fit.places, fit.parts, fit.form)
    if loaded is not None and np.array_equal(loaded[0].digests, digests):
        return loaded
    return fit.state(digests), None


def _place_for_scoring(problem: Problem) -> Problem:
    """Return the problem for scoring, on every device of this process.

    Of the curvature set it keeps one batch, for the shape of an image.
    """
    first = jax.tree.map(lambda leaf: leaf[:1], problem.batches)
    if all_devices().size == 1:
        return dataclasses.replace(problem, batches=first)
    place = local_devices()
    params, frozen, batches = (replicate(tree, place) for tree in (problem.params, problem.frozen, first))
    return dataclasses.replace(problem, params=params, frozen=frozen, batches=batches)


ASIDE = frozenset(
    {
        "out",
        "encoder",
        "also",
        "source",
        "parts",
        "distributed",
        "scored_images",
        "rescore_changed",
        "retry_skipped",
        "most_skipped",
    }
)
"""Settings that change no score: places, how a run is written, and how it is continued."""
AGREEMENT = 512
"""Number of images that are scored in float32 too if layers compute in 16 bits."""


def score(settings: ScoreRun, progress: Progress = silent) -> None:
    """Score every image without a score, and write table and record.

    Args:
        settings: The settings of the run.
        progress: Called at every stage and batch.

    Raises:
        StoreError: The folder holds something else, or is in use.
        CheckpointError: There is no encoder, or it is damaged.
        DataError: The source cannot be read, or images have changed since they were scored.
        SkippedError: More images were skipped than allowed; the table is written.
        IndefiniteError: C + λI is not positive definite.
        InfluenceError: Two encoders have the same name, or one of several cannot be scored; the message names it.
    """
    start(settings.distributed)
    progress = progress if is_first() else silent
    if settings.also:
        score_together(settings, progress)
    else:
        for _ in score_in_steps(settings, progress):
            pass


def score_in_steps(settings: ScoreRun, progress: Progress, shared: Shared | None = None) -> Generator[int, None, None]:
    """Score with one encoder, and stop after each batch.

    If the generator is closed, or an error is thrown into it, it writes finished scores as an interrupted run does.

    Args:
        settings: The settings of a run of one encoder.
        progress: Called at every stage and batch.
        shared: What the encoders share that are scored together; None for one encoder.

    Yields:
        0 before the curvature is fitted, and 0 before the first batch; after each batch, the number that follows its last
        image; and the number of images before the table is written. Nothing if the scores are finished.
    """
    encoder, transform, measured, source = prepared = prepare(
        settings, progress, None if shared is None else shared.source
    )
    rename_attributes(source)  # attributes that no table can hold are refused before any work
    owner = identity(settings, encoder, transform, source)
    with ScoreStore.open(settings.out, owner, len(source)) as store, RunLog(settings.out) as log:
        log.beat("comparing images")
        forget_changed(settings, source, store, log, progress)
        todo = len(source) - store.finished
        if agree_with_first(not todo and (settings.out / RUN).exists()):
            progress(Note(f"Nothing to do: {settings.out / SCORES} is finished."))
            refuse_many_skipped(settings, len(store.skipped()), len(source))
            return
        log.event("start", todo=todo, total=len(source), recomputed=store.lost, command=provenance.command())
        if todo < len(source):
            progress(Note(f"Continuing: {len(source) - todo} of {len(source)} images are done."))
        yield 0
        log.beat("reading the curvature set")
        part = batches_of(all_devices()) if all_devices().size > 1 else None
        problem, used = draw_problem(settings, prepared, part, fitted_images(store))
        scorer = fit_scorer(settings, problem, used, measured, store, log, progress, shared)
        if caution := settings.backend.caution(problem):
            progress(Note(caution, "caution"))
        inside = sorted({index for text in gather(json.dumps(sorted(used))) for index in json.loads(text)})
        recorded = {**describe_run(settings, prepared, scorer), **rank_agreement(settings, prepared, scorer, progress)}
        spent: defaultdict[str, float] = defaultdict(float)
        todo_here = own_share(store.todo(), scorer)
        read = None if shared is None else shared.reading.join(transform, todo_here)
        yield 0
        began = time.monotonic()
        scored = stream(scorer, source, transform, todo_here, scoring_mesh(), spent, read)
        spent["disk"] = yield from write_parts(store, scored, len(source), settings.parts, log, progress)
        yield len(source)
        waited = share_of_waiting(spent["images"], time.monotonic() - began)
        recorded["seconds_waiting_for"] = {name: round(seconds, 3) for name, seconds in spent.items()}
        recorded["share_waiting_for_images"] = round(waited, 4)
        written = sum_over_processes(store.rows())
        barrier("scored")
        first_only(lambda: finish(settings, prepared, recorded, used, inside, written, store, log, progress))
    refuse_many_skipped(settings, len(store.skipped()), len(source))


def split_runs(settings: ScoreRun) -> dict[str, ScoreRun]:
    """Return the settings of each encoder's own run, by name.

    The name is that of its folder, its file without suffix, or its function.

    Raises:
        InfluenceError: Two names are equal, or one cannot be that of a folder.
        StoreError: The folder is that of a run of one encoder.
    """
    runs: dict[str, ScoreRun] = {}
    for encoder in (settings.encoder, *settings.also):
        name = name_of(encoder)
        if name != Path(name).name or name.startswith("."):
            raise InfluenceError(
                f"The scores of {encoder} need a folder of its name, got {name!r}; give it another name."
            )
        if name.casefold() in map(str.casefold, runs):
            raise InfluenceError(
                f"Two encoders have the name {name}, which is also the name of the folder of its scores. Rename one of "
                "them, or score them by two commands."
            )
        runs[name] = dataclasses.replace(settings, encoder=encoder, out=settings.out / name, also=())
    if (settings.out / IDENTITY).exists():
        raise StoreError(
            f"{settings.out} holds the scores of one encoder, and those of several are in folders below. Choose another "
            "folder."
        )
    return runs


def name_of(encoder: Path | Encoder) -> str:
    """Return the name that tells an encoder from others.

    Examples:
        >>> [name_of(Path(place)) for place in ("runs/simclr", "resnet50.pth", "package.module:function")]
        ['simclr', 'resnet50', 'function']
    """
    if isinstance(encoder, Encoder):
        return encoder.name
    if names_function(encoder):
        return encoder.name.rpartition(":")[2]
    return encoder.absolute().name if encoder.is_dir() else encoder.stem


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a name before the message of a user's error."""
    try:
        yield
    except (InfluenceError, ValueError) as error:
        error.args = (f"{name}: {error}",)
        raise


def score_together(settings: ScoreRun, progress: Progress) -> None:
    """Score with several encoders in one pass over the images.

    Each has a folder of its name in `out`, as of a run of this encoder alone. All are loaded, and their folders opened,
    before the first is fitted; all are fitted before the first is scored. Then the one that is furthest behind scores
    its next batch.

    Raises:
        InfluenceError: Two encoders have the same name, or one of them cannot be scored; the message names it.
        SkippedError: One skipped more images than allowed; the tables of all are written.
    """
    runs = split_runs(settings)
    opened = settings.source.open()
    for note in opened.notes():
        progress(Note(note, "caution"))
    shared, together = Shared(opened, SharedReading(opened)), Together(progress)
    steps = {name: score_in_steps(run, together.of(name), shared) for name, run in runs.items()}
    place: dict[str, int] = {}
    skipped: list[SkippedError] = []

    def step(name: str) -> None:
        with naming(name):
            try:
                place[name] = next(steps[name])
            except StopIteration:
                place.pop(name, None)
            except SkippedError as error:  # its table is written; the other encoders continue
                place.pop(name, None)
                skipped.append(SkippedError(f"{name}: {error}"))

    try:
        for name in runs:  # loads
            step(name)
        for name in tuple(place):  # fits
            step(name)
        size = len(opened)
        with together.counting(f"scoring by {', '.join(place)}", len(place) * size):
            while place and min(place.values()) < size:
                step(min(place, key=place.__getitem__))
        for name in tuple(place):
            while name in place:
                step(name)
    except BaseException as error:
        for name in place:
            with contextlib.suppress(BaseException):  # each writes its finished scores; the first error is raised
                steps[name].throw(error)
        raise
    if skipped:
        raise skipped[0]


def rank_agreement(settings: ScoreRun, prepared: Prepared, scorer: Scorer, progress: Progress) -> dict[str, Plain]:
    """Compute Spearman's correlation of 16-bit with float32 scores.

    The scores are those of the first images. The result is empty for a run in float32.
    """
    if settings.precision == "float32":
        return {}
    exact = form_measurement(prepared.encoder, settings.output, settings.perturbation, settings.measurement)
    sample = np.arange(min(AGREEMENT, len(prepared.source)))
    ranked = []
    for each in (scorer, dataclasses.replace(scorer, measurement=exact)):
        parts = stream(each, prepared.source, prepared.transform, sample, scoring_mesh())
        ranked.append(np.concatenate([part.table["score"].to_numpy() for part in parts]))
    fine = np.isfinite(ranked[0]) & np.isfinite(ranked[1])
    correlation = spearman(ranked[0][fine], ranked[1][fine])
    progress(Note(f"bfloat16 against float32: rank correlation {correlation:.4f} over {fine.sum()} images."))
    return {"bfloat16": {"rank_correlation": correlation, "images": int(fine.sum())}}


def own_share(todo: Bool[np.ndarray, " examples"], scorer: Scorer) -> Bool[np.ndarray, " examples"]:
    """Return this process's share of the examples to score.

    It is whole batches, which follow one another.
    """
    own = own_part(find_batches(todo, scorer.batch_size))
    begin, end = (own[0], own[-1] + 1) if len(own) else (0, 0)
    share = np.zeros_like(todo)
    inside = slice(begin * scorer.batch_size, end * scorer.batch_size)
    share[inside] = todo[inside]
    return share


def share_of_waiting(seconds: float, total: float) -> float:
    """Return the largest share of time that a process waited for images.

    Args:
        seconds: The seconds for which this process waited.
        total: Seconds that this process scored.
    """
    return max(float(each) for each in gather(repr(seconds / max(total, 1e-9))))


def finish(
    settings: ScoreRun,
    prepared: Prepared,
    recorded: dict[str, Plain],
    used: dict[int, bytes],
    inside: list[int],
    written: int,
    store: ScoreStore,
    log: RunLog,
    progress: Progress,
) -> None:
    """Join all processes' parts into the table; add neighbour distances.

    `in_curvature_set` marks the images that the matrix is averaged over. Their own gradient is a part of it, so they
    score lower than they would outside (about 10 % at 32 and 64 images), unless `leave_own_out` removes that part.

    Args:
        settings: The settings of the run.
        prepared: The inputs of the run.
        recorded: Entries of `run.json`.
        used: Digests of this process's curvature set, by index.
        inside: Indices of the whole curvature set.
        written: Number of rows that all processes have written.
        store: The store of the run.
        log: The log of the run.
        progress: Called at every stage.
    """
    store.refresh(written)
    refuse_two_versions(used, store)
    with stage(progress, "nearest neighbours"):
        log.beat("nearest neighbours")
        embedded = store.embedded()
        distances = store.distances(lambda: neighbours_of(settings.scoring, store))
        known, unknown = count_known(distances, store)
    if not embedded and unknown:
        progress(
            Note(
                f"{unknown:,} images have no knn_distance: the embeddings of the others were dropped "
                "(--parts.embeddings drop). A new folder has all of them.",
                "caution",
            )
        )
    searched = count_searched(known, settings.scoring.neighbours)
    if searched["reference"] < searched["images"]:
        progress(
            Note(
                f"knn_distance is the distance to the nearest of {searched['reference']:,} random images, not of all "
                f"{searched['images']:,}: distances are larger, and they find few duplicates.",
                "caution",
            )
        )
    attributes, changes = rename_attributes(prepared.source)
    for old, new in changes.items():
        progress(Note(f"the attribute {old!r} is in the table as {new!r}", "caution"))
    log.beat("writing the table")

    def further(index: Int[np.ndarray, " some"]) -> dict[str, Shaped[np.ndarray, " some"]]:
        return {**neighbour_columns(distances.of(index)), IN_CURVATURE_SET: np.isin(index, inside)}

    facts = {
        **recorded,
        **curvature_set_agreement(store),
        "nearest_neighbours": searched,
        "renamed_attributes": changes,
    }
    table = store.finish(attributes, further, facts)
    if embedded and settings.parts.embeddings == "drop":
        store.drop_embeddings()
    elif embedded:
        distances.delete()
    counts = read_sealed(settings.out / RUN)["counts"]
    waits = {name: recorded[name] for name in ("seconds_waiting_for", "share_waiting_for_images")}
    log.event("finished", **counts, **waits)
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "size")
    progress(Note(f"{counts['size']} images: {text}."))
    progress(Note(describe_waiting(recorded["share_waiting_for_images"], recorded["seconds_waiting_for"]["images"])))
    progress(Written("Scores", table))


def neighbours_of(settings: Scoring, store: ScoreStore) -> Iterator[Neighbours]:
    """Find the nearest neighbours of every scored image, in pieces."""
    return stream_neighbours(lambda: read_embeddings(store), settings.neighbours, settings.seed)


def read_embeddings(
    store: ScoreStore,
) -> Iterator[tuple[Int[np.ndarray, " some"], Float[np.ndarray, "some width"]]]:
    """Read indices and embeddings of the scored images, in ordered pieces."""
    for table in store.windows([EMBEDDING]):
        yield table["index"].to_numpy(), embedding_matrix(table[EMBEDDING])


def count_known(distances: Distances, store: ScoreStore) -> tuple[int, int]:
    """Count the scored images with a distance, and those without."""
    known = unknown = 0
    for table in store.windows([]):
        finite = int(np.isfinite(distances.of(table["index"].to_numpy()).distance).sum())
        known, unknown = known + finite, unknown + table.num_rows - finite
    return known, unknown


def count_searched(usable: int, neighbours: int) -> dict[str, int]:
    """Count the images whose neighbours were searched, and among how many.

    Args:
        usable: Images that have a distance.
        neighbours: Neighbours of each image.
    """
    return {"images": usable, "reference": reference_size(usable, neighbours), "neighbours": neighbours}


def curvature_set_agreement(store: ScoreStore) -> dict[str, Plain]:
    """Compare rankings by halves and by the whole of the curvature set.

    It is empty if the backend gives no scores by halves.
    More than SAMPLE images are compared by a random sample of that size; `images` says how many were.
    """
    names = ["score", "score_first_half", "score_second_half", "score_se_curvature"]
    if not set(names) <= set(store.columns()):
        return {}
    table = _sample_rows(store, names)
    score, first, second, error = (table[name].to_numpy() for name in names)
    known = int((np.isfinite(score) & np.isfinite(first) & np.isfinite(second)).sum())
    if not known:
        return {}
    top = max(1, round(0.01 * known))

    def agreement(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
        return {"spearman": spearman(left, right), "highest 1 %": top_overlap(left, right, top)}

    return {
        "curvature_set": {
            "halves": agreement(first, second),
            "half and whole": agreement(first, score),
            "median relative standard error": float(np.nanmedian(error / score)),
            "images": known,
        }
    }


def _sample_rows(store: ScoreStore, columns: list[str]) -> pa.Table:
    """Return some columns of all scored rows, or of a sample.

    The sample is random and has SAMPLE rows.
    """
    total = sum(table.num_rows for table in store.windows([]))
    chosen = np.arange(min(total, SAMPLE))
    if total > SAMPLE:
        chosen = np.sort(randomness.generator(0, Stream.REPORTED).choice(total, SAMPLE, replace=False))
    pieces, start = list[pa.Table](), 0
    for table in store.windows(columns):
        inside = chosen[slice(*np.searchsorted(chosen, [start, start + table.num_rows]))]
        pieces.append(table.take(inside - start))
        start += table.num_rows
    return pa.concat_tables(pieces)


def rename_attributes(source: OpenSource) -> tuple[pa.Table | None, dict[str, str]]:
    """Return the source's attributes under free names, and the changes.

    A name is taken if a column of the table or of planted truth has it. Planted truth keeps its name in the source that
    plants it; in any other source a column of that name is an attribute like others.
    """
    attributes = source.attributes()
    if attributes is None:
        return None, {}
    attributes = storable(attributes)
    taken = (*ORDER, IN_CURVATURE_SET, EMBEDDING, *(name for name in TRUTH if name not in source.truth()))
    return rename_taken(attributes, taken)


def refuse_many_skipped(settings: ScoreRun, skipped: int, size: int) -> None:
    """Check that the share of skipped images is not too large.

    Args:
        settings: The settings of the run.
        skipped: Number of skipped images.
        size: Number of all images.

    Raises:
        SkippedError: The share is larger than `most_skipped`.
    """
    if skipped > settings.most_skipped * size:
        raise SkippedError(
            f"{skipped:,} of {size:,} images could not be used, more than the share of {settings.most_skipped:g} that "
            "--most-skipped allows; the scores of the others are written, and each row has its reason. Repair the images "
            "and give --retry-skipped, or allow more."
        )


def identity(settings: ScoreRun, encoder: Encoder, transform: ToInput, source: OpenSource) -> Plain:
    """Return everything that a score depends on, as JSON.

    The places of the encoder, the data and the scores are not among it.
    """
    return {
        "configuration": describe_without(settings, ASIDE),
        **describe_encoder(encoder, transform),
        "data": source.members(),
        **provenance.decisive(),
    }


def describe_placed(settings: ScoreRun) -> dict[str, Plain]:
    """Describe the settings for `run.json`, with absolute places.

    An encoder or a data set that was given as an object has no place: null stands for it.
    """
    described_here = type(settings.source) in SOURCES
    return {
        **describe_without(settings, {"encoder", "also", "out", "source"}),
        "encoder": None if isinstance(settings.encoder, Encoder) else str(absolute(settings.encoder)),
        "out": str(settings.out.absolute()),
        "source": describe(settings.source.absolute()) if described_here else None,
    }


def restore_settings(
    record: dict[str, Plain], encoder: Encoder | None = None, source: Source | None = None
) -> ScoreRun:
    """Read the settings of a run of scores from its record.

    Args:
        record: The content of `run.json`.
        encoder: The encoder, if the scores were made from an object.
        source: The images, if the scores were made from an object.

    Raises:
        InfluenceError: The encoder or the images were objects and are not given, or the record is of another version.
    """
    configuration = {name: value for name, value in record["configuration"].items() if name != "input"}
    objects = {"encoder": encoder, "source": source}
    for name, value in objects.items():
        if value is None and configuration[name] is None:
            raise InfluenceError(
                f"These scores were made in Python from an object ({name}), which no file can name. Give the same {name} to "
                "influence_ssl_jax.score(…, out=FOLDER) again (it scores nothing again), and use the Run that it returns."
            )
    places = {name: configuration.pop(name) for name in objects}
    restored = restore(
        {**configuration, "encoder": places["encoder"] or "", "out": configuration["out"] or ""}, [ScoreRun]
    )
    if places["source"] is not None:
        objects["source"] = source or restore(places["source"], SOURCES)
    return dataclasses.replace(restored, **{name: value for name, value in objects.items() if value is not None})


def describe_run(settings: ScoreRun, prepared: Prepared, scorer: Scorer) -> dict[str, Plain]:
    """Return the entries of `run.json` that say how the scores were made."""
    trained, every = prepared.encoder.sizes()
    return {
        "configuration": {**describe_placed(settings), "input": describe(prepared.transform)},
        "encoder": {"name": prepared.encoder.name, "parameters": every, "trained_parameters": trained},
        "command": provenance.command(),
        "seeds": {"seed": settings.scoring.seed},
        "batch_size": scorer.batch_size,
        "damping": {**dataclasses.asdict(settings.scoring.damping), **describe_damping(scorer)},
        "device": provenance.device(),
        "versions": provenance.versions(),
    }


def describe_damping(scorer: Scorer) -> dict[str, Plain]:
    """Return λ in numbers, and how far it is known if estimated."""
    error, bounds = scorer.backend.damping_error(scorer.state, scorer.settings.damping)
    description = {"resolved": as_numbers(scorer.damping)}
    if error is not None:
        description["relative_standard_error"] = error
    if bounds is not None:
        description["bounds"] = [bound if math.isfinite(bound) else None for bound in bounds]  # None: no upper bound
    return description


def as_numbers(damping: Resolved) -> Plain:
    """Convert λ to JSON: one number, or one for each block."""
    return {name: float(value) for name, value in damping.items()} if isinstance(damping, dict) else float(damping)
