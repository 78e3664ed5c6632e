"""Measure an encoder by the classes of test images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax import provenance, randomness
from influence_ssl_jax.configuration import COUNT, POSITIVE, Plain, check_numbers, describe
from influence_ssl_jax.data import Digits, OpenSource, Skipped, Source, batches, depth_notes
from influence_ssl_jax.data.loader import LoadedBatch
from influence_ssl_jax.encoder import Encoder, Output
from influence_ssl_jax.errors import DataError, InfluenceError
from influence_ssl_jax.progress import Advanced, Ended, Note, Progress, Started, Written, silent
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.run_log import Pace
from influence_ssl_jax.runs.prepare import absolute, describe_encoder, load_encoder, names_function
from influence_ssl_jax.runs.settings import Unseen, describe_without
from influence_ssl_jax.runs.unseen import describe_test, find_repeated, note_repeated, open_test
from influence_ssl_jax.store import read_sealed, write_sealed
from influence_ssl_jax.store.identity import list_differences
from influence_ssl_jax.train.linear_evaluation import LinearEvaluation, fit_linear
from influence_ssl_jax.train.probes import Labelled, embed_all, knn_accuracy
from influence_ssl_jax.types import Batch, Frozen, Params

FILE = "probe.json"
"""The name of the result beside an encoder's folder or file."""
TOP = 5
"""The number of likeliest classes of which one must be right, for the second accuracy."""


@dataclasses.dataclass(frozen=True)
class ProbeRun:
    """Measure an encoder: a linear classifier and nearest neighbours, on test images.

    The classifier is trained by SGD on the representations of all training images, with the settings of solo-learn, and
    asked about all test images (top 1 and top 5). The neighbours vote with weights. The result is a JSON file with
    settings, versions and seeds. If it is there already, for the same settings, nothing is done.

    influence-ssl probe --encoder runs/simclr --test.split test source:tfds --source.name cifar10

    influence-ssl probe --encoder vicreg.pth --out vicreg.json --test.path faces/val source:folder --source.path
    faces/train --source.label-column folder

    Attributes:
        encoder: A folder of `pretrain` or `import`, a file of weights, or package.module:function (returns an Encoder);
            `influence-ssl import` lists the layouts of files.
        source: The training images of the classifier, with classes.
        test: The test images: a split, path or list of ids of their own.
        out: The file of the result; if not given, probe.json in the folder of the encoder, or beside its file.
        output: The embedding that is classified: the encoder's representation or the projector's output.
        linear: How the linear classifier is trained.
        neighbours: Number of neighbours that vote on a test image.
        temperature: Temperature of the votes.
        batch_size: Images that are embedded together.
    """

    encoder: Path | Encoder
    source: Source = dataclasses.field(default_factory=Digits)
    test: Unseen = dataclasses.field(default_factory=Unseen)
    out: Path | None = None
    output: Output = "encoder"
    linear: LinearEvaluation = dataclasses.field(default_factory=LinearEvaluation)
    neighbours: int = 20
    temperature: float = 0.07
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers of nothing."""
        check_numbers(self, neighbours=COUNT, temperature=POSITIVE, batch_size=COUNT)


def probe(settings: ProbeRun, progress: Progress = silent) -> dict[str, Any]:
    """Measure the accuracies of an encoder on test images, and write them.

    Args:
        settings: The settings of the run.
        progress: Called at every stage, and with every note.

    Returns:
        The content of the file. An `Encoder` that is given as an object is measured without a file, unless `out` is given.

    Raises:
        DataError: No test images are named, they cannot be read, have no classes or other ones, or are training images.
        CheckpointError: There is no encoder, or it is damaged.
        InfluenceError: The file holds another result, or the encoder has no such output.
        DivergenceError: The linear classifier diverged.
    """
    out = _place(settings)
    encoder = load_encoder(settings.encoder).at(settings.output)
    train = settings.source.open()
    test = open_test(settings.source, train, settings.test)
    if test is None:
        raise DataError(
            "An accuracy needs test images. Name them: --test.split for source:tfds, --test.path for folders, parquet and "
            "shards, or --test.only FILE with --source.only FILE to divide one set."
        )
    identity = _identify(settings, encoder, train, test)
    if out is not None and out.exists():
        return _read_again(out, identity, progress)
    for note in (*train.notes(), *test.notes(), *depth_notes(train, encoder.input)):
        progress(Note(note, "caution"))
    known, asked = (
        _embed(settings, encoder, each, name, progress) for name, each in (("training", train), ("test", test))
    )
    for note in note_repeated(find_repeated({each[1] for each in known.read}, asked.read), len(asked.read)):
        progress(note)
    record = {**identity, **_measure(settings, known, asked, progress)}
    record |= {"command": provenance.command(), "versions": provenance.versions(), "device": provenance.device()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(out, record, indent=1)
        progress(Written("Accuracies", out))
    return record


def _place(settings: ProbeRun) -> Path | None:
    """Return the file of the result, or None.

    There is none for an encoder that is an object, unless `out` is given.

    Raises:
        InfluenceError: It cannot stand beside the encoder, which is a function.
    """
    if settings.out is not None or isinstance(settings.encoder, Encoder):
        return settings.out
    if names_function(settings.encoder):
        raise InfluenceError(
            f"{settings.encoder} names a function, which has no folder. Name the file of the result: --out."
        )
    if settings.encoder.is_dir():
        return settings.encoder / FILE
    return settings.encoder.with_name(f"{settings.encoder.stem}.{FILE}")


def _identify(settings: ProbeRun, encoder: Encoder, train: OpenSource, test: OpenSource) -> dict[str, Plain]:
    """Describe what the accuracies depend on."""
    described = describe_test(settings.source, settings.test)
    place = None if isinstance(settings.encoder, Encoder) else str(absolute(settings.encoder))
    return {
        "configuration": {
            **describe_without(settings, {"encoder", "source", "test", "out", "batch_size"}),
            "encoder": place,
            "source": describe(settings.source.absolute()),
            "test": None if described is None else describe(described.absolute()),
        },
        "encoder": describe_encoder(encoder, encoder.input),
        "data": {"training": train.fingerprint(), "test": test.fingerprint()},
    }


def _read_again(out: Path, identity: dict[str, Plain], progress: Progress) -> dict[str, Any]:
    """Return a result that is there already.

    Raises:
        InfluenceError: It is that of other settings, another encoder or other images.
    """
    record = read_sealed(out)
    differing = list_differences({name: record.get(name) for name in identity}, identity)
    if differing:
        raise InfluenceError(f"{out} holds the accuracies of another probe; name another file (--out):\n{differing}")
    progress(Note(f"Nothing to do: {out} is finished."))
    return record


class _Embedded(NamedTuple):
    """Labelled representations, and what was read for them.

    Attributes:
        labelled: Representations and classes.
        read: Name and digest of every image that was read, with a class or without.
        skipped: Images that could not be used.
    """

    labelled: Labelled
    read: list[tuple[str, bytes]]
    skipped: list[Skipped]


def _embed(settings: ProbeRun, encoder: Encoder, source: OpenSource, name: str, progress: Progress) -> _Embedded:
    """Embed all images of a source that have a class.

    Raises:
        DataError: There are none.
    """
    stage, pace = f"embedding {name} images", Pace(len(source), 0)
    read: list[tuple[str, bytes]] = []
    skipped: list[Skipped] = []

    def load() -> Iterator[Batch]:
        key = randomness.root(settings.linear.seed, Stream.PROBE_TEST)
        each: LoadedBatch
        for each in batches(source, encoder.input, settings.batch_size, key):
            yield each.batch
            taken = [
                pair for pair, valid in zip(zip(each.ids, each.contents, strict=True), each.valid, strict=True) if valid
            ]
            read.extend(taken)
            skipped.extend(each.skipped)
            pace.advance(len(taken) + len(each.skipped))
            progress(Advanced(stage, pace.done, pace.total, pace.speed or None))

    @jax.jit
    def embed(params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "batch width"]:
        return encoder.network(params, frozen, batch.image.astype(jnp.float32) / 255)

    progress(Started(stage, 0, len(source)))
    try:
        labelled = embed_all(lambda batch: embed(encoder.params, encoder.frozen, batch), load())
    finally:
        progress(Ended(stage))
    if skipped:
        first = skipped[0]
        text = f"{len(skipped):,} {name} images could not be used, the first: {first.id}: {first.reason}"
        progress(Note(text, "caution"))
    without = len(read) - len(labelled.labels)
    if without:
        progress(Note(f"{without:,} {name} images have no class and are left out.", "caution"))
    if not len(labelled.labels):
        raise DataError(f"No {name} image that can be read has a class; an accuracy needs some.")
    return _Embedded(labelled, read, skipped)


def _measure(settings: ProbeRun, known: _Embedded, asked: _Embedded, progress: Progress) -> dict[str, Plain]:
    """Return accuracies, the loss of the classifier, and counts."""
    progress(Started("training the linear classifier"))
    try:
        classifier = fit_linear(known.labelled, settings.linear)
    finally:
        progress(Ended("training the linear classifier"))
    few = len(classifier.classes) <= TOP  # one of them is always right
    voted = knn_accuracy(known.labelled, asked.labelled, settings.neighbours, settings.temperature)
    return {
        "accuracies": {
            "linear": classifier.top_accuracy(asked.labelled, 1),
            "linear_top5": None if few else classifier.top_accuracy(asked.labelled, TOP),
            "knn": voted,
        },
        "linear_on_training_images": {
            "accuracy": classifier.top_accuracy(known.labelled, 1),
            "loss": classifier.loss,
        },
        "counts": {
            "training": len(known.labelled.labels),
            "test": len(asked.labelled.labels),
            "classes": len(classifier.classes),
            "skipped_training": len(known.skipped),
            "skipped_test": len(asked.skipped),
        },
        "seeds": {"seed": settings.linear.seed},
    }
