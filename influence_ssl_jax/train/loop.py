"""The training loop: epochs of steps, probed, recorded and resumable."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console

from influence_ssl_jax import configuration
from influence_ssl_jax.data import LoadedBatch, OpenSource, ToInput, epoch
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.parallel import first_only, is_first, summed
from influence_ssl_jax.train.evaluation import Evaluation, Probe
from influence_ssl_jax.train.export import Trained
from influence_ssl_jax.train.journal import Bar, Journal, Row, progress
from influence_ssl_jax.train.layout import Layout
from influence_ssl_jax.train.resume import Checkpoints, TrainingError, claim
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import Metrics, Step, TrainState, initial, make_step


def pretrain(
    settings: Pretrain,
    source: OpenSource,
    transform: ToInput,
    folder: Path,
    test: OpenSource | None = None,
    probe: Probe | None = None,
    keep: int = 2,
    console: Console | None = None,
) -> Trained:
    """Train, or go on with, the run in `folder`.

    Written there: `settings.json`; `metrics.jsonl`, one row per epoch; `checkpoints/`, the states after the last `keep`
    epochs. A run that was killed goes on from its last whole epoch to the result that it would have had, bit for bit. A
    source smaller than a batch is trained on as one smaller batch; examples that cannot be read are replaced and
    counted in the journal (`skipped`).

    Every batch is split over the devices of all processes, each of which reads its own rows of it; parameters are whole
    on each. What a batch couples (BatchNorm's statistics, the loss) is that of the whole batch, as on one device.

    Args:
        settings: What is trained.
        source: The training examples; labels are read by the supervised loss and by the probe only.
        transform: How an image becomes the input.
        folder: Where the run is recorded.
        test: Examples that the probe asks about, in place of training examples.
        probe: How representations are tried; `Probe()` where None.
        keep: Checkpoints that are kept.
        console: Where progress is shown; the terminal where None.

    Raises:
        TrainingError: The folder holds another run, the source has fewer than two examples, a batch cannot be split
            evenly over the processes, or the loss became NaN or infinite.
        DataError: The source is empty, or a batch cannot be filled.
    """
    console = console or Console()
    if not len(source):
        raise DataError("The data set has no images; there is nothing to train on. Check its path, split or filter.")
    if len(source) == 1:
        raise TrainingError("Training compares examples of a batch and needs at least 2, the source has 1.")
    description = {"pretrain": configuration.describe(settings), "data": source.fingerprint()}
    first_only(lambda: claim(folder, description))
    shape = (transform.height, transform.width, transform.channels)
    size = min(settings.batch_size, len(source))
    steps, layout = len(source) // size, Layout.of(size)
    evaluate = Evaluation(probe or Probe(), settings, source, test, transform)
    checkpoints, journal = Checkpoints(folder, keep), Journal(folder / "metrics.jsonl")
    try:
        done, state = checkpoints.latest(layout.everywhere(initial(settings, shape)))
        history = journal.keep(done) if is_first() else []
        step = make_step(settings, steps)
        with progress(console, settings.epochs * steps, done * steps) as bar:
            if not history and is_first():
                history.append(_record(journal, bar, {"epoch": 0, **evaluate(layout.here(state))}))
            for number in range(done + 1, settings.epochs + 1):
                loaded = epoch(
                    source, transform, settings.batch_size, settings.seed, number, part=layout.part, place=layout.place
                )
                state, summary = _epoch(step, state, loaded, number, steps, bar)
                if is_first():
                    probed = evaluate(layout.here(state))
                    history.append(_record(journal, bar, {"epoch": number, **summary, **probed}))
                checkpoints.save(number, state)
    finally:
        checkpoints.close()
    state = layout.here(state)
    return Trained(settings, shape, state.params, state.frozen, tuple(history))


def _epoch(
    step: Step, state: TrainState, batches: Iterator[LoadedBatch], number: int, steps: int, bar: Bar
) -> tuple[TrainState, Row]:
    """One pass over the data: the state after it, and means over its steps."""
    clock, losses, norms, rate, skipped = _Clock(), [], [], 0.0, 0
    behind: list[tuple[Metrics, LoadedBatch]] = []

    def look(metrics: Metrics, loaded: LoadedBatch) -> float:
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(_diverged(loss, norm, float(metrics["learning_rate"]), number, len(losses), steps))
        losses.append(loss)
        norms.append(norm)
        bar.advance(number, loss, clock.tick(len(loaded.ids) * jax.process_count()))
        return float(metrics["learning_rate"])

    for loaded in batches:
        state, metrics = step(state, loaded.batch)
        skipped += len(loaded.skipped)
        # One step behind, so that the device computes while the host reads the numbers of the step before.
        if behind:
            rate = look(*behind.pop())
        behind.append((metrics, loaded))
    rate = look(*behind.pop())
    row = {"loss": _mean(losses), "gradient_norm": _mean(norms), "learning_rate": rate, "skipped": summed(skipped)}
    return state, {**row, "images_per_second": clock.speed, "seconds": clock.seconds}


class _Clock:
    """Throughput since the first step, which compiles."""

    def __init__(self) -> None:
        self._began, self._first, self._images, self.speed = time.perf_counter(), 0.0, 0, 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def tick(self, images: int) -> float:
        """Count a step that is done."""
        if self._first == 0.0:
            self._first = time.perf_counter()
        else:
            self._images += images
            self.speed = self._images / (time.perf_counter() - self._first)
        return self.speed


def _record(journal: Journal, bar: Bar, row: Row) -> Row:
    journal.append(row)
    shown = {name: value for name, value in row.items() if name in ("loss", "knn", "linear", "images_per_second")}
    if row.get("skipped"):
        shown["images that could not be used"] = row["skipped"]
    if shown:
        bar.say(f"epoch {row['epoch']}: " + " · ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    return row


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _diverged(loss: float, norm: float, rate: float, epoch: int, step: int, steps: int) -> str:
    return (
        f"Training diverged at step {step + 1} of {steps} in epoch {epoch}: loss {loss:.4g}, gradient norm {norm:.4g}, "
        f"learning rate {rate:.4g}. Lower the learning rate, lengthen the warm-up, or compute in float32; the last "
        "whole epoch is kept."
    )
