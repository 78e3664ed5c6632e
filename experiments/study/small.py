"""Train many small encoders with this package, and score images by them.

What the experiments share that need more encoders than one: `stability`, `retraining`, `removal` and `outputs`. Images are
those of CIFAR, shrunk by averaging; networks are ResNet-18 of few channels. The published scale is `--pixels 32
--width 64 --train 50000 --epochs 1000`. Every encoder leaves one small file of results under `runs`, so that the same
command continues where it was stopped; `--minutes 10` begins no further encoder after ten minutes.

All encoders of a method are trained by one compiled step: seeds and images are data. The step, the first parameters and the
order of the images are those of `influence_ssl_jax.train`.
"""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import tyro
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.table import EXPERIMENTS
from influence_ssl_jax import randomness
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.cli.environment import keep_compiled_programs, keep_convolutions_whole
from influence_ssl_jax.configuration import describe, fingerprint
from influence_ssl_jax.data import Arrays, Digits, OpenSource, Tfds, ToInput, batches, epoch, resident
from influence_ssl_jax.data.examples import Example, read_all
from influence_ssl_jax.encoder import Encoder, Output
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.ihvp.backend import Backend
from influence_ssl_jax.losses import BYOL, BarlowTwins, CosineDistance, SimCLR, Supervised
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.runs.prepare import form_measurement, form_problem
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.scoring.neighbours import find_neighbours
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import embedding_matrix, stream
from influence_ssl_jax.train import Architecture, Lars, Pretrain, Sgd, Trained, save
from influence_ssl_jax.train import load as load_trained
from influence_ssl_jax.train.probes import Labelled, embed_all, knn_accuracy, linear_accuracy
from influence_ssl_jax.train.state import initial, make_step
from influence_ssl_jax.types import Batch, Frozen, Params

Result = dict[str, np.ndarray]
BATCH = 128
"""Images at a time where nothing is trained."""
SIGMA = 0.2
COLUMNS = {
    "score": "score",
    "alignment_loss": "alignment loss",
    "gradient_norm": "gradient norm",
    "pixel_variance": "pixel variance",
    "knn_distance": "distance to the nearest embedding",
}
"""Columns of a scored table that are kept, with their names in the results: the score first, then its rivals."""
RIVALS = tuple(COLUMNS.values())[1:]
METHODS = {
    "SimCLR": Pretrain(
        "simclr", SimCLR(0.2), Architecture(hidden=256, output=64, normalisation="none"), Lars(0.4, warmup_epochs=1)
    ),
    "BYOL": Pretrain(
        "byol",
        BYOL(),
        Architecture(hidden=256, output=64, predictor_hidden=256),
        Lars(0.2, eta=0.005, weight_decay=1e-5, warmup_epochs=1),
    ),
    "Barlow Twins": Pretrain(
        "barlow_twins", BarlowTwins(), Architecture(hidden=256, output=64), Lars(0.1, eta=0.005, warmup_epochs=1)
    ),
    "supervised": Pretrain("supervised", Supervised(), Architecture(output=10), Sgd(0.1, warmup_epochs=1)),
}
"""Recipes by method: those of `experiments/pretrain_cifar10.py` with smaller heads, and supervised training."""


@dataclasses.dataclass(frozen=True)
class Small:
    """At which scale encoders are trained.

    Attributes:
        images: Which data: CIFAR-10, CIFAR-100, or the bundled digits, which need no download.
        data_dir: Where tensorflow-datasets keeps prepared data sets.
        pixels: Height and width; CIFAR is shrunk by averaging squares of pixels.
        width: Channels of the first stage of the ResNet-18 (published: 64).
        train: Training images, the first of tensorflow-datasets' order, which is shuffled.
        test: Test images.
        epochs: Passes over the training images.
        batch_size: Images of a step.
        draws: Perturbations of an image that a score averages.
        at_once: Encoders that are trained at the same time, each by one thread.
        minutes: Begin no further encoder after so many minutes; None finishes all.
        runs: Folder of the encoders and their files of results.
        results: Folder of the results.
        figures: Folder of the pictures.
    """

    images: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    data_dir: str | None = None
    pixels: int = 16
    width: int = 4
    train: int = 2048
    test: int = 3000
    epochs: int = 10
    batch_size: int = 64
    draws: int = 2
    at_once: int = 2
    minutes: float | None = None
    runs: Path = Path("runs/study/small")
    results: Path = EXPERIMENTS / "results" / "study"
    figures: Path = EXPERIMENTS.parent / "docs" / "results" / "figures"

    def settings(self, method: str) -> Pretrain:
        """Return the settings of a method at this scale, with seed 0."""
        recipe = METHODS[method]
        shape = dataclasses.replace(recipe.architecture, width=self.width)
        if method == "supervised" and self.images == "cifar100":
            shape = dataclasses.replace(shape, output=100)
        return dataclasses.replace(recipe, architecture=shape, epochs=self.epochs, batch_size=self.batch_size)

    def described(self) -> dict[str, Any]:
        """Return what decides the result, without the places of this machine."""
        places = ("data_dir", "at_once", "minutes", "runs", "results", "figures")
        return {name: value for name, value in dict(describe(self)).items() if name not in places}

    def folder(self) -> Path:
        """Return the folder of this scale's files, and make it; how many encoders there are does not name it."""
        counts = ("methods", "seeds", "cuts", "shares")
        decides = {name: value for name, value in self.described().items() if name not in counts}
        place = self.runs / f"{type(self).__name__.lower()}_{fingerprint(decides)[:12]}"
        place.mkdir(parents=True, exist_ok=True)
        return place


class Pictures(NamedTuple):
    """Images with their classes.

    Attributes:
        images: Pixels.
        labels: Classes.
    """

    images: UInt8[np.ndarray, "count height width 3"]
    labels: Int[np.ndarray, " count"]

    def of(self, chosen: np.ndarray) -> "Pictures":
        """Return some of them."""
        return Pictures(self.images[chosen], self.labels[chosen])

    def open(self) -> OpenSource:
        """Return them as a source, numbered from 0."""
        return Arrays(self.images, self.labels).open()

    def to_input(self) -> ToInput:
        """Return the transform that leaves them as they are."""
        return ToInput(self.images.shape[1], self.images.shape[2])


def shrink(images: UInt8[np.ndarray, "count height width 3"], pixels: int) -> UInt8[np.ndarray, "count new new 3"]:
    """Average squares of pixels, and round to whole grey levels.

    Raises:
        ValueError: If the height is not a multiple of `pixels`.
    """
    if images.shape[1] % pixels:
        raise ValueError(f"Images of {images.shape[1]} pixels cannot be shrunk to {pixels} by averaging squares.")
    factor = images.shape[1] // pixels
    squares = images.reshape(len(images), pixels, factor, pixels, factor, 3)
    return np.rint(squares.mean(axis=(2, 4))).astype(np.uint8)


def read(scale: Small, part: Literal["train", "test"]) -> Pictures:
    """Read the images of a part at this scale."""
    count = scale.train if part == "train" else scale.test
    if scale.images == "digits":
        source = Digits(scale.pixels, digits=count, seed=int(part == "test"))
    else:
        source = Tfds(scale.images, f"{part}[:{count}]", scale.data_dir)
    opened = source.open()
    pixels = [
        ToInput(*each.image.shape[:2])(each.image)
        for each in read_all(opened, range(count))
        if isinstance(each, Example)
    ]
    return Pictures(shrink(np.stack(pixels), scale.pixels), np.asarray(opened.labels())[:count])


def passes(scale: Small, method: str, pictures: Pictures, seed: int) -> Iterator[Trained]:
    """Train an encoder, and yield it before the first epoch and after every epoch.

    The next epoch takes the arrays of a yielded encoder: read them before. Encoders of one method and number of images
    share a compiled step.

    Raises:
        ValueError: If the loss is not finite at the end of an epoch.
    """
    settings, size = scale.settings(method), min(scale.batch_size, len(pictures.labels))
    own = dataclasses.replace(settings, seed=seed)
    step, source = make_step(settings, len(pictures.labels) // size), pictures.open()
    state, loss = initial(own, pictures.images.shape[1:]), jnp.zeros(())
    yield Trained(own, pictures.images.shape[1:], state.params, state.frozen, ())
    for number in range(1, settings.epochs + 1):
        for loaded in epoch(source, pictures.to_input(), size, seed, number):
            state, metrics = step(state, loaded.batch)
            loss = metrics["loss"]
        if not np.isfinite(float(loss)):
            raise ValueError(f"{method}, seed {seed}: the loss is {float(loss)} in epoch {number}.")
        row = {"epoch": number, "loss": float(loss)}
        yield Trained(own, pictures.images.shape[1:], state.params, state.frozen, (row,))


def train(scale: Small, method: str, pictures: Pictures, seed: int) -> Trained:
    """Train an encoder for all epochs."""
    (last,) = deque(passes(scale, method, pictures, seed), maxlen=1)
    return last


def place_of(scale: Small, method: str, seed: int, epochs: int | None = None) -> Path:
    """Return where an encoder is kept: the trained one, or the one after so many epochs."""
    after = "" if epochs is None else f"_{epochs}"
    place = scale.folder() / "encoders" / f"{method.lower().replace(' ', '_')}_{seed}{after}"
    place.parent.mkdir(exist_ok=True)
    return place


def encoder_of(scale: Small, method: str, seed: int, pictures: Pictures) -> Trained:
    """Train an encoder and keep it, or read it where it was trained before."""
    place = place_of(scale, method, seed)
    if not place.with_suffix(".json").exists():
        save(place, train(scale, method, pictures, seed))
    return load_trained(place)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(network: Any, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "batch width"]:
    return network(params, frozen, jnp.asarray(batch.image, jnp.float32) / 255)


def outputs(trained: Trained, pictures: Pictures, depth: Literal["encode", "project"] = "encode") -> Labelled:
    """Return representations, or projections, of images."""
    network = dataclasses.replace(trained.settings, seed=0).network(depth)
    loaded = batches(pictures.open(), pictures.to_input(), BATCH, randomness.root(0, Stream.PROBE_TEST))
    return embed_all(
        lambda batch: _outputs(network, trained.params, trained.frozen, batch), (each.batch for each in loaded)
    )


def accuracies(trained: Trained, bank: Pictures, test: Pictures) -> dict[str, float]:
    """Return the accuracy on test images of 20 nearest neighbours, of a linear probe, and of the own classifier if any.

    Args:
        trained: The encoder.
        bank: Labelled images that vote, and that the linear probe is fitted to.
        test: Images that are classified.
    """
    known, asked = outputs(trained, bank), outputs(trained, test)
    measured = {"knn": knn_accuracy(known, asked), "linear": linear_accuracy(known, asked)}
    if isinstance(trained.settings.loss, Supervised):
        logits = outputs(trained, test, "project")
        measured["classifier"] = float(np.mean(logits.embeddings.argmax(axis=1) == logits.labels))
    return measured


@functools.partial(jax.jit, static_argnums=(0, 1))
def alignment_losses(
    objective: Objective, draws: int, params: Params, frozen: Frozen, batch: Batch
) -> Float[Array, " batch"]:
    """Return the mean cosine distance of each image's two views, over draws of the views.

    Args:
        objective: Network and views; its loss is the cosine distance.
        draws: Pairs of views.
        params: The network's parameters.
        frozen: Its running statistics.
        batch: The images.
    """
    loss = objective.loss
    assert isinstance(loss, CosineDistance)

    def draw(number: Int[Array, ""]) -> Float[Array, " batch"]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(batch.key, number)
        views = objective.images(dataclasses.replace(batch, key=keys), jnp.float32)
        return loss.values(loss.residuals(Embeddings(objective.embed(params, frozen, views))))

    return jnp.mean(jax.lax.map(draw, jnp.arange(draws)), axis=0)


def alignment(trained: Trained, pictures: Pictures, views: Literal["training", "noise"], draws: int) -> np.ndarray:
    """Return the mean cosine distance between the representations of two views of each image, in evaluation mode.

    An image's views are the same for every encoder.

    Args:
        trained: The encoder.
        pictures: The images.
        views: Two views of the pretraining, or the image itself and with noise of σ 0.2.
        draws: Pairs of views.
    """
    settings = dataclasses.replace(trained.settings, seed=0)
    pair = settings.objective().views if views == "training" else GaussianNoise(SIGMA)
    objective = Objective(settings.network("encode"), pair, CosineDistance())
    rows = []
    for loaded in batches(pictures.open(), pictures.to_input(), BATCH, randomness.root(1, Stream.PERTURBATIONS)):
        values = alignment_losses(
            objective, draws, {"backbone": trained.params["backbone"]}, trained.frozen, loaded.batch
        )
        rows.append(np.asarray(values)[loaded.valid])
    return np.concatenate(rows)


def backbone(trained: Trained) -> Encoder:
    """Return the encoder without its heads: one network for all methods, whose scores are compiled once."""
    part = "backbone"
    frozen = {name: {part: state[part]} for name, state in trained.frozen.items() if part in state}
    settings = dataclasses.replace(METHODS["SimCLR"], architecture=Architecture(trained.settings.architecture.width))
    height, width = trained.image_shape[:2]
    return Encoder(settings.network("encode"), {part: trained.params[part]}, frozen, ToInput(height, width), "backbone")


def score(
    trained: Trained,
    pictures: Pictures,
    backend: Backend,
    scoring: Scoring,
    curvature: CurvatureSet,
    scored: int | None = None,
    output: Output = "encoder",
    scorings: int = 1,
) -> Result:
    """Score images; returns the score and its rivals by their names in `COLUMNS`, [scorings, images].

    Args:
        trained: The encoder.
        pictures: The images that the curvature is drawn from.
        backend: How the curvature is inverted.
        scoring: Draws and damping.
        curvature: Which curvature.
        scored: How many images are scored, the first; None scores all.
        output: The output whose cosine distance is differentiated.
        scorings: How often each image is scored, each time with other noise.
    """
    whole = output != "encoder" or curvature.objective == "pretraining"
    encoder = trained.encoder() if whole else backbone(trained)
    measurement = form_measurement(encoder, output, GaussianNoise(SIGMA), CosineDistance())
    chosen = resident(pictures.open(), encoder.input, curvature.examples, curvature.batch_size, 0)
    problem = form_problem(encoder, output, measurement, curvature, chosen)
    scorer = Scorer.fit(problem, backend, scoring, measurement)
    count = len(pictures.labels) if scored is None else scored
    # Noise is derived from an image's number, so an image that is there twice is scored with two draws of it.
    asked = pictures.of(np.tile(np.arange(count), scorings)).open()
    table = pa.concat_tables([part.table for part in stream(scorer, asked, encoder.input)]).sort_by("index")
    embeddings = embedding_matrix(table["embedding"]).reshape(scorings, count, -1)
    columns = {
        name: table[column].to_numpy(zero_copy_only=False).reshape(scorings, count)
        for column, name in COLUMNS.items()
        if column in table.column_names
    }
    distances = np.stack([find_neighbours(each.astype(np.float32)).distance for each in embeddings])
    return {**columns, COLUMNS["knn_distance"]: distances}


def complete(scale: Small, jobs: Mapping[str, Callable[[], Mapping[str, Any]]]) -> dict[str, Result]:
    """Do the jobs that have no file yet, and read the files of all; each holds its seconds, too.

    The first missing job runs alone, so that its program is compiled once.

    Raises:
        SystemExit: If the time is over before all are done.
    """
    folder, end = scale.folder(), time.monotonic() + 60 * (np.inf if scale.minutes is None else scale.minutes)
    missing = [name for name in jobs if not (folder / f"{name}.npz").exists()]

    def do(name: str) -> None:
        if time.monotonic() > end or (folder / f"{name}.npz").exists():  # another process may have done it
            return
        began = time.monotonic()
        arrays = {key: np.asarray(value) for key, value in jobs[name]().items()}
        part = folder / f"{name}.part"
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, seconds=np.asarray(time.monotonic() - began))
        part.rename(folder / f"{name}.npz")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)

    for name in missing[:1]:
        do(name)
    with ThreadPoolExecutor(scale.at_once) as threads:
        list(threads.map(do, missing[1:]))
    left = [name for name in jobs if not (folder / f"{name}.npz").exists()]
    if left:
        raise SystemExit(f"{len(jobs) - len(left)} of {len(jobs)} are done; the same command continues.")
    return {name: load(folder / f"{name}.npz") for name in jobs}


def minutes(jobs_done: Iterable[Result]) -> float:
    """Return the minutes that all jobs took, each by one thread."""
    return sum(float(each["seconds"]) for each in jobs_done) / 60


def load(file: Path) -> Result:
    """Read a file of results."""
    with np.load(file, allow_pickle=False) as held:
        return dict(held)


def across(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    one: Float[np.ndarray, "2 images"],
    other: Float[np.ndarray, "2 images"],
) -> float:
    """Return how alike two encoders score under other noise: the statistic of scorings that share no draw, mean of both.

    Under the same noise two encoders agree about the noise, too.
    """
    return (statistic(one[0], other[1]) + statistic(one[1], other[0])) / 2


def attainable(one: Float[np.ndarray, "2 images"], other: Float[np.ndarray, "2 images"]) -> float:
    """Return the rank correlation that the spread of the draws leaves across two encoders.

    It is the geometric mean of each encoder's own correlation between its two scorings.
    """
    return (max(spearman(*one), 0.0) * max(spearman(*other), 0.0)) ** 0.5


def reliability(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation that the mean of two repetitions has with another such mean (Spearman–Brown).

    It is zero where the repetitions do not go along.
    """
    between = max(spearman(first, second), 0.0)
    return 2 * between / (1 + between)


Find = Callable[[Any], tuple[dict[str, Any], Figure | None]]


def answer(scale: Small, name: str, find: Find) -> Path:
    """Find a result, and write it with its scale and its command."""
    record, figure = find(scale)
    command, other = f"python -m experiments.study.{name} --data-dir DIR", scale.images == "cifar100"
    place = f"{name}_cifar100" if other else name
    if figure is not None:
        scale.figures.mkdir(parents=True, exist_ok=True)
        figure.savefig(scale.figures / f"{place}.png", dpi=110, metadata={"Software": None})
    told = {"command": command + (" --images cifar100" if other else ""), "scale": scale.described()}
    return results.write(scale.results, place, {**told, **record})


def main(name: str, kind: type[Small], find: Find) -> None:
    """Answer one question from the command line."""
    keep_compiled_programs()
    keep_convolutions_whole()
    print(answer(tyro.cli(kind), name, find).read_text(encoding="utf-8"))
