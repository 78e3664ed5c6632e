"""Convert a file of weights to an encoder."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from influence_ssl_jax import checkpoints, provenance
from influence_ssl_jax.checkpoint import Storage
from influence_ssl_jax.checkpoints.layout import Pretraining
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.runs.settings import POSITIONAL, option_name

if TYPE_CHECKING:
    Layout: TypeAlias = str
else:  # one value for each entry of the one list
    Layout = Literal[tuple(checkpoints.FORMATS)]


@dataclasses.dataclass(frozen=True)
class ImportRun:
    """Convert a file of weights of another program to an encoder.

    The file is a .pth, .ckpt or .safetensors. Nothing in the file is executed. What was recognised is printed, and
    everything left unread is named. The folder can then be scored: influence-ssl score --encoder FOLDER.

    influence-ssl import dinov2_vits14_pretrain.pth --out dinov2

    influence-ssl import simclr.ckpt --out simclr --dataset cifar10 --loss simclr --temperature 0.2

    Attributes:
        file: The file.
        out: The folder of the encoder; it must not hold another one.
        layout: The layout of the file, if the names of its arrays do not show it.
        size: Height and width of the input in pixels; the layout's own if not given.
        mean: Per-channel mean of pixels in [0, 1]; the layout's own if not given.
        std: Per-channel standard deviation of pixels; the layout's own if not given.
        heads: Attention heads of a transformer; its width / 64 if not given.
        part: Which network of a file that holds a teacher and a student.
        dataset: The data set that a solo-learn network was trained on, which sets the normalisation.
        loss: The loss that the network was pretrained with, for the curvature of that loss.
        temperature: Temperature of SimCLR's loss; 0.2 if not given.
        storage: The type of stored parameters.
        notes: A JSON file that is kept in the encoder's description, such as the history of its training.
    """

    file: Path = dataclasses.field(metadata=POSITIONAL)
    out: Path
    layout: Layout | None = dataclasses.field(default=None, metadata=option_name("as"))
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    heads: int | None = None
    part: Literal["teacher", "student"] = "teacher"
    dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None
    loss: Pretraining | None = None
    temperature: float | None = None
    storage: Storage = "float32"
    notes: Path | None = None


class Imported(NamedTuple):
    """The result of an import.

    Attributes:
        recognised: What was recognised in the file, by name.
        parameters: Number of parameters of the encoder.
        unread: What was left unread, and why.
        arrays: The file of the encoder's arrays.
    """

    recognised: Mapping[str, str]
    parameters: int
    unread: Mapping[str, str]
    arrays: Path


def import_encoder(settings: ImportRun) -> Imported:
    """Read the file, check it on an image, and save the encoder.

    Raises:
        InfluenceError: The file is damaged or of no known layout, or the folder holds an encoder.
    """
    if (settings.out / "encoder.json").exists():
        raise InfluenceError(f"{settings.out} already holds an encoder; choose another folder, or delete it.")
    if settings.out.exists() and not settings.out.is_dir():
        raise InfluenceError(f"{settings.out} is a file; --out names the folder of the encoder.")
    names = [field.name for field in dataclasses.fields(checkpoints.Choices)]
    choices = checkpoints.Choices(**{name: getattr(settings, name) for name in names})
    file = checkpoints.read(settings.file, settings.layout, choices)
    notes = {} if settings.notes is None else {"history": _json(settings.notes)}
    origin = {"source": settings.file.name, "command": provenance.command(), **notes}
    encoder = dataclasses.replace(file.encoder, notes={**origin, "unread": dict(file.unread)}).checked()
    files = encoder.save(settings.out, settings.storage)
    return Imported(file.recognised, encoder.sizes()[1], file.unread, files.arrays)


def _json(path: Path) -> object:
    """Read a JSON file of notes."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InfluenceError(f"--notes {path} is not a readable JSON file: {error}") from error
