"""Prepare what a run reads: encoder, images, measurement and matrix."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from influence_ssl_jax import checkpoint, checkpoints
from influence_ssl_jax.configuration import Plain, describe, restore
from influence_ssl_jax.data import ToInput, depth_notes
from influence_ssl_jax.data.examples import OpenSource
from influence_ssl_jax.data.loader import draw_curvature_set
from influence_ssl_jax.encoder import FILE, Encoder, Output
from influence_ssl_jax.errors import DataError
from influence_ssl_jax.losses import Measurement, Supervised
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.progress import Note, Progress
from influence_ssl_jax.runs.settings import AnyPerturbation, CompareRun, CurvatureSet, ScoreRun, views
from influence_ssl_jax.train.export import load
from influence_ssl_jax.train.settings import Precision
from influence_ssl_jax.types import Batch


class Prepared(NamedTuple):
    """The inputs of a run.

    Attributes:
        encoder: The network.
        transform: The transform of an image to its input.
        measurement: The objective that is scored.
        source: The images.
    """

    encoder: Encoder
    transform: ToInput
    measurement: Objective
    source: OpenSource


def prepare(settings: ScoreRun | CompareRun, progress: Progress, opened: OpenSource | None = None) -> Prepared:
    """Load the encoder, open the images, and report what is notable.

    Args:
        settings: The settings of the run.
        progress: Called with each note.
        opened: The images, if they are open and their notes are reported; None opens them.

    Raises:
        CheckpointError: There is no encoder, or it is damaged.
        DataError: The source cannot be read, or numbers other classes than the training did.
        InfluenceError: The network has no such output or no such parameters.
    """
    encoder = load_encoder(settings.encoder)
    if settings.trainable:
        encoder = encoder.with_trainable(settings.trainable)
    trained, every = encoder.sizes()
    if trained < every:
        named = ", ".join(encoder.trainable) or "the floating-point ones"
        progress(Note(f"Parameters: {trained:,} of {every:,} count ({named})."))
    precision = settings.precision if isinstance(settings, ScoreRun) else "float32"
    measured = form_measurement(encoder, settings.output, settings.perturbation, settings.measurement, precision)
    source = settings.source.open() if opened is None else opened
    if settings.curvature.objective == "pretraining" and reads_labels(encoder):
        refuse_other_classes(encoder.notes.get("classes"), source.class_names())
    for note in (*(source.notes() if opened is None else ()), *depth_notes(source, encoder.input)):
        progress(Note(note, "caution"))
    return Prepared(encoder, encoder.input, measured, source)


def reads_labels(encoder: Encoder) -> bool:
    """Test whether an encoder was trained by a loss that reads labels."""
    return encoder.heads is not None and isinstance(encoder.heads.loss, Supervised)


def refuse_other_classes(trained: Plain, here: tuple[str, ...] | None) -> None:
    """Check that the images number their classes as the training did.

    The curvature of a supervised loss reads labels.

    Args:
        trained: Names of the classes in training; None if the data had numbers.
        here: Names of the classes of these images.

    Raises:
        DataError: They differ.
    """
    now = None if here is None else list(here)
    if trained != now:
        raise DataError(
            f"The network was trained on the classes {trained or 'that its data numbered'} and these images have "
            f"{now or 'classes that are numbers'}: the same number would mean another class. Use the class table of the "
            "training, or --curvature.objective measurement, which reads no labels."
        )


def draw_problem(
    settings: ScoreRun | CompareRun,
    prepared: Prepared,
    part: Callable[[int], range] | None = None,
    among: Int[np.ndarray, " members"] | None = None,
) -> tuple[Problem, dict[int, bytes]]:
    """Draw the curvature set's images, and return the matrix over them.

    Args:
        settings: The settings of the run.
        prepared: The inputs of the run.
        part: Chooses the batches of this process by their number; all batches if None.
        among: Indices of the images that the matrix was averaged over before; None draws them.

    Returns:
        The problem, and the digests of the images that its matrix is averaged over, by index.
    """
    chosen, seed = settings.curvature, settings.scoring.seed
    sample = draw_curvature_set(
        prepared.source, prepared.transform, chosen.examples, chosen.batch_size, seed, part, among
    )
    problem = form_problem(prepared.encoder, settings.output, prepared.measurement, chosen, sample.batches)
    return problem, sample.contents


def describe_encoder(encoder: Encoder, transform: ToInput) -> dict[str, Plain]:
    """Describe an encoder: arrays, network, trainable parameters and input.

    A result depends on these, and not on the name of the encoder.
    """
    described = encoder.describe()
    return {
        "encoder": encoder.digest(),
        "network": {name: described[name] for name in ("network", "heads", "trainable")},
        "input": describe(transform),
    }


def load_encoder(place: Path | Encoder) -> Encoder:
    """Load the encoder at a place.

    An encoder is returned as it is.

    Args:
        place: The folder of a `pretrain` run or of an imported encoder, or its `.npz`; a file of weights of a known
            layout; or `package.module:function`, a function that returns an `Encoder`.

    Raises:
        CheckpointError: There is nothing, or it is damaged or of no known layout.
        InfluenceError: The function does not exist, or does not return an encoder.
    """
    if isinstance(place, Encoder):
        return place
    if names_function(place):
        return Encoder.load(place)
    path = place / FILE if place.is_dir() else place
    saved = path.suffix in (".npz", ".json") or checkpoint.Files.of(path).description.exists()
    if not saved and not place.is_dir() and (place.is_file() or place.suffix):
        try:
            return checkpoints.read(place).encoder.checked()
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(
                f"{error}\nWhat a file does not say is an option of `influence-ssl import {place} --out FOLDER`; then give "
                "--encoder FOLDER."
            ) from error
    if not place.exists() and not saved:
        raise checkpoint.CheckpointError(
            f"There is no {place}. An encoder is a folder of `pretrain` or `import`, a file of weights, or "
            "package.module:function that returns an Encoder."
        )
    described = checkpoint.describe(path)
    if "encoder" in described:
        return Encoder.load(path)
    recorded = described.get("input")
    encoder = load(path).encoder(restore(recorded, [ToInput]) if recorded else None)
    return dataclasses.replace(encoder, notes={"classes": described.get("classes")})


def names_function(place: Path) -> bool:
    """Test whether a place names a function, not a path.

    A function is named as `package.module:function`.
    """
    return not place.exists() and ":" in str(place)


def absolute(place: Path) -> Path:
    """Make a path absolute.

    The name of a function is returned as it is.
    """
    return place if names_function(place) else place.absolute()


def form_measurement(
    encoder: Encoder,
    output: Output,
    perturbation: AnyPerturbation,
    loss: Measurement,
    precision: Precision = "float32",
) -> Objective:
    """Return what is scored: the distance of two views at one output.

    Args:
        encoder: The network.
        output: The output at which views are compared.
        perturbation: How the second view is made.
        loss: How two embeddings are compared.
        precision: The type in which layers compute.

    Raises:
        InfluenceError: The network has no such output, or cannot compute in that type.
    """
    chosen = encoder.at(output)
    if precision != "float32":
        chosen = chosen.computing_in(precision)
    return Objective(chosen.network, views(perturbation), loss)


def form_problem(
    encoder: Encoder, output: Output, measured: Objective, curvature: CurvatureSet, batches: Batch
) -> Problem:
    """Return the matrix that is inverted, over a resident set of images.

    Its parameters are those that the measurement or the loss reads. A pretraining loss reads the heads too: for them
    the gradient of a score is zero, but the curvature is not.

    Args:
        encoder: The network.
        output: The output that is scored.
        measured: What is scored (`form_measurement`).
        curvature: The kind of curvature.
        batches: The images, with leading axes [batches, batch].
    """
    objective, params = measured, encoder.at(output).params
    if curvature.objective == "pretraining":
        objective, read = encoder.pretraining()
        params = {**params, **read}
    return Problem(params, encoder.frozen, batches, objective, curvature.kind, curvature.samples)
