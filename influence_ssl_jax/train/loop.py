"""Train a network: epochs of steps, with probes, a record and checkpoints."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from influence_ssl_jax import configuration, provenance
from influence_ssl_jax.data import Cached, LoadedBatch, OpenSource, ToInput, epoch
from influence_ssl_jax.data.loader import describe_waiting, time_waiting
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.parallel import first_only, is_first, sum_over_processes
from influence_ssl_jax.progress import Note, Progress, silent
from influence_ssl_jax.run_log import Pace, RunLog, Watch, watch_stage
from influence_ssl_jax.store.identity import refuse_disagreement
from influence_ssl_jax.train.export import Kept, Trained
from influence_ssl_jax.train.probes import Evaluation, Probe
from influence_ssl_jax.train.resume import Checkpoints, Journal, Layout, Row, TrainingError, check_images, claim
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import Metrics, Step, TrainState, initial, make_step

STATES = 2
"""Number of epochs whose states are kept, so that a run with a damaged state continues from the one before it."""


def pretrain(
    settings: Pretrain,
    source: OpenSource,
    transform: ToInput,
    folder: Path,
    test: OpenSource | None = None,
    probe: Probe | None = None,
    kept: Kept | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a network in `folder`, or continue the run that is there.

    The folder receives `settings.json`; `metrics.jsonl`, one row for each epoch; `checkpoints/`, the states after the
    last two epochs; and `log.jsonl` and `heartbeat.json`, as scoring writes them. A run that was stopped continues
    from its last complete epoch, with the same result bit for bit as without the stop. If the source is smaller than a
    batch, the batch is the whole source. Examples that cannot be read are replaced and counted in the journal
    (`skipped`).

    Every batch is split over the devices of all processes; each process reads its own rows of it, and each device has
    all parameters. BatchNorm's statistics and the loss are those of the whole batch, as on one device.

    Args:
        settings: Settings of the run.
        source: The training examples; only the supervised loss and the probe read labels.
        transform: The transform of an image to the input.
        folder: The folder of the run.
        test: Test examples, whose classes the probe predicts; None measures no accuracy.
        probe: Settings of the probe; None means `Probe()`.
        kept: The epochs whose networks are kept; None keeps that of the last epoch alone, which is returned.
        progress: The function that receives the events of the run.

    Raises:
        TrainingError: If the folder has another run or lacks a network that was to be kept, the source has fewer than
            two examples, a batch cannot be split evenly over the processes, or the loss became NaN or infinite.
        DataError: If the source is empty, or a batch cannot be filled.
        StoreError: If another process is working on the run in the folder.
    """
    if not len(source):
        raise DataError("The data set has no images; there is nothing to train on. Check its path, split or filter.")
    if len(source) == 1:
        raise TrainingError("Training compares examples of a batch and needs at least 2; the source has 1.")
    probe, kept = probe or Probe(), kept or Kept(folder)
    measured = test if probe.every else None
    description = {
        "pretrain": configuration.describe(settings),
        "input": configuration.describe(transform),
        "data": _data(source, transform),
        **({} if measured is None else {"probe": configuration.describe(probe), "test": _data(measured, transform)}),
        **provenance.decisive("optax"),
    }
    refuse_disagreement(description)
    shape = (transform.height, transform.width, transform.channels)
    size = min(settings.batch_size, len(source))
    steps, layout = len(source) // size, Layout.of(size)
    evaluate = None if measured is None else Evaluation(probe, settings, source, measured, transform)
    with contextlib.ExitStack() as until_the_end:
        claimed = first_only(lambda: claim(folder, description))
        until_the_end.enter_context(claimed or contextlib.nullcontext())
        if isinstance(source, Cached):
            check_images(folder, source.examples)
        states = Checkpoints(folder, STATES, configuration.fingerprint(description))
        checkpoints = until_the_end.enter_context(contextlib.closing(states))
        log, journal = until_the_end.enter_context(RunLog(folder)), Journal(folder / "metrics.jsonl")
        done, state = checkpoints.latest(layout.everywhere(initial(settings, shape)))
        first_only(lambda: kept.require(done))
        log.event("start", **_extent(settings, steps), resumed_at_step=done * steps, command=provenance.command())
        history, spent = journal.keep(done) if is_first() else [], defaultdict[str, float](float)
        step, pace = make_step(settings, steps), Pace(settings.epochs * steps * size, done * steps * size)
        log.beat("compiling")
        with watch_stage(progress, log, "training", pace) as watch:

            def record(row: Row) -> None:
                if is_first():
                    if evaluate is not None and probe.is_due(int(row["epoch"]), settings.epochs):
                        watch.pause("probing")
                        row = {**row, **evaluate(layout.here(state))}
                    journal.append(row)
                    history.append(row)
                    _say(row, watch)
                log.event("epoch", **row, **pace.facts())

            def keep(number: int, state: TrainState) -> None:
                if number in kept.epochs:
                    here = layout.here(state)
                    trained = Trained(settings, shape, here.params, here.frozen, tuple(history))
                    first_only(lambda: kept.save(number, trained))

            if done == 0 and not history:
                record({"epoch": 0})
            if done == 0:
                keep(0, state)
            for number in range(done + 1, settings.epochs + 1):
                loaded = epoch(
                    source, transform, settings.batch_size, settings.seed, number, part=layout.part, place=layout.place
                )
                state, summary = _epoch(step, state, time_waiting(loaded, spent), number, steps, watch, log)
                spent["all"] += summary["seconds"]
                record({"epoch": number, **summary})
                watch.pause("saving")
                keep(number, state)  # before the state: a run that is killed between them does this epoch again
                checkpoints.save(number, state)
        if is_first():
            _finish({**_extent(settings, steps), "resumed_at_step": done * steps}, history, spent, log, progress)
    state = layout.here(state)
    return Trained(settings, shape, state.params, state.frozen, tuple(history))


def _data(source: OpenSource, transform: ToInput) -> str:
    """Return the fingerprint of the training data.

    It is the same if one process keeps decoded images or several processes read the source itself.
    """
    if isinstance(source, Cached) and source.transform == transform:
        return source.source.fingerprint()
    return source.fingerprint()


def _epoch(
    step: Step,
    state: TrainState,
    batches: Iterator[LoadedBatch],
    number: int,
    steps: int,
    watch: Watch,
    log: RunLog,
) -> tuple[TrainState, Row]:
    """Train one epoch; return the new state and its steps' means."""
    began, pace, losses, norms, rate, skipped = time.perf_counter(), Pace(0, 0), [], [], 0.0, 0
    behind: list[tuple[Metrics, LoadedBatch]] = []

    def look(metrics: Metrics, loaded: LoadedBatch) -> float:
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = _describe_divergence(loss, norm, float(metrics["learning_rate"]), number, len(losses), steps)
            log.event("diverged", epoch=number, step=(number - 1) * steps + len(losses) + 1, reason=reason)
            raise TrainingError(reason)
        losses.append(loss)
        norms.append(norm)
        images = len(loaded.ids) * jax.process_count()
        pace.advance(images)
        watch.advance(images, epoch=number, loss=loss)
        return float(metrics["learning_rate"])

    watch.pause("training")
    for loaded in batches:
        state, metrics = step(state, loaded.batch)
        skipped += len(loaded.skipped)
        # Metrics are read one step late, so that the device computes while the host reads.
        if behind:
            rate = look(*behind.pop())
        behind.append((metrics, loaded))
    rate = look(*behind.pop())
    seconds = time.perf_counter() - began
    row = {
        "loss": _mean(losses),
        "gradient_norm": _mean(norms),
        "learning_rate": rate,
        "skipped": sum_over_processes(skipped),
    }
    return state, {**row, "images_per_second": pace.done / seconds, "seconds": seconds}


def _extent(settings: Pretrain, steps: int) -> dict[str, int]:
    """Return the numbers of epochs and steps of a run."""
    return {"epochs": settings.epochs, "steps": settings.epochs * steps}


def _say(row: Row, watch: Watch) -> None:
    """Report loss and probes of an epoch."""
    shown = {name: value for name, value in row.items() if name in ("loss", "knn", "linear")}
    if row.get("skipped"):
        shown["images that could not be used"] = row["skipped"]
    if shown:
        watch.say(f"epoch {row['epoch']}: " + " · ".join(f"{name} {value:.4g}" for name, value in shown.items()))


def _finish(
    counts: dict[str, int], history: list[Row], spent: Mapping[str, float], log: RunLog, progress: Progress
) -> None:
    """Log and report the totals of a run.

    They are epochs, steps, starts, losses that are not finite, skipped images, and the share of the time of training for
    which this process waited for images.

    Args:
        counts: Epochs, steps, and the step from which this run continued.
        history: The rows of all epochs.
        spent: Seconds of `all` steps of this run, and of waiting for `images`; empty if nothing was left to train.
        log: The log of the run.
        progress: The function that receives the events of the run.
    """
    counts["runs"] = len(log.events("start"))
    counts["nan"] = len(log.events("diverged"))
    counts["skipped"] = sum(int(row.get("skipped", 0)) for row in history)
    share = spent["images"] / spent["all"] if spent else None
    log.event("finished", **counts, **({} if share is None else {"share_waiting_for_images": round(share, 4)}))
    text = (
        f"{counts['epochs']} epochs, {counts['steps']} steps in {counts['runs']} runs, the last from step "
        f"{counts['resumed_at_step']}; {counts['nan']} losses not finite, {counts['skipped']} images could not be used."
    )
    progress(Note(text))
    if share is not None:
        progress(Note(describe_waiting(share, spent["images"])))


def _mean(values: list[float]) -> float:
    """Return the mean of values, with a correctly rounded sum."""
    return math.fsum(values) / len(values)


def _describe_divergence(loss: float, norm: float, rate: float, epoch: int, step: int, steps: int) -> str:
    """Describe a loss that is not finite, and what to do."""
    return (
        f"Training diverged at step {step + 1} of {steps} in epoch {epoch}: loss {loss:.4g}, gradient norm {norm:.4g}, "
        f"learning rate {rate:.4g}. Lower the learning rate, lengthen the warm-up, or compute in float32; the last "
        "whole epoch is kept."
    )
