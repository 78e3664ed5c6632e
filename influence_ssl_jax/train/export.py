"""Save trained networks and load them, also as encoders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import jax

from influence_ssl_jax import checkpoint, configuration
from influence_ssl_jax.augment.recipes import PRETRAINING
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.encoder import FILE, PARTS, Encoder, Heads
from influence_ssl_jax.train.resume import Row, TrainingError
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import TrainState, initial
from influence_ssl_jax.types import Frozen, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        settings: Settings of the run; `settings.objective()` is the training loss in evaluation mode.
        image_shape: (height, width, channels) of the input.
        params: Trained parameters θ.
        frozen: Running statistics, and the target network if there is one.
        history: One row for each epoch, from the untrained network (epoch 0) on.
    """

    settings: Pretrain
    image_shape: tuple[int, int, int]
    params: Params
    frozen: Frozen
    history: tuple[Row, ...] = ()

    def encoder(self, input: ToInput | None = None) -> Encoder:
        """Return the encoder with its heads, its training loss and its views.

        Args:
            input: The transform of an image to the input; None resizes it to the size of the training images.
        """
        height, width, channels = self.image_shape
        to_input = input or ToInput(height, width, 1 if channels == 1 else 3)
        loss = self.settings.loss
        parts = PARTS["predictor" if loss.compares_with_target else "projector"][1:]
        recipe, views = self.settings.views, self.settings.objective().views
        params = {part: self.params[part] for part in parts if part in self.params}
        heads = Heads(params, loss, recipe if PRETRAINING[recipe] == views else views)
        name = f"{type(loss).__name__}, ResNet-18 of width {self.settings.architecture.width}"
        backbone = {"backbone": self.params["backbone"]}
        return Encoder(self.settings.network("encode"), backbone, self.frozen, to_input, name, heads)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The epochs of a run whose networks are kept.

    Each network has a folder of its own.

    Attributes:
        folder: The folder of those folders, `epoch-<number>`.
        epochs: Numbers of epochs; 0 is the untrained network.
        notes: Further entries of the descriptions, plain JSON.
    """

    folder: Path
    epochs: frozenset[int] = frozenset()
    notes: Mapping[str, configuration.Plain] = dataclasses.field(default_factory=dict)

    def file(self, epoch: int) -> Path:
        """Return the path, without suffix, of the files of an epoch's network."""
        return self.folder / f"epoch-{epoch}" / FILE

    def require(self, done: int) -> None:
        """Check that a resumed run has kept the networks of past epochs.

        Args:
            done: Number of epochs that are done; 0 if the run begins.

        Raises:
            TrainingError: One is absent: its state is gone.
        """
        past = [epoch for epoch in sorted(self.epochs) if epoch <= done] if done else []
        absent = [str(epoch) for epoch in past if not self._is_there(epoch)]
        if absent:
            raise TrainingError(
                f"The run has finished {done} epochs and has not kept its network after epoch {absent[0]}. Leave "
                f"{', '.join(absent)} out of --keep, or train in another folder."
            )

    def _is_there(self, epoch: int) -> bool:
        """Test whether both files of an epoch's network exist."""
        files = checkpoint.Files.of(self.file(epoch))
        return files.arrays.exists() and files.description.exists()

    def save(self, epoch: int, trained: Trained) -> None:
        """Write the network after an epoch."""
        save(self.file(epoch), trained, epoch=epoch, **self.notes)


def save(
    path: str | Path, trained: Trained, storage: checkpoint.Storage = "float32", **notes: configuration.Plain
) -> checkpoint.Files:
    """Write a trained network to `<path>.npz` and `<path>.json`.

    The files hold everything that the training loss reads, the settings and the history.

    Args:
        path: Path of the files; a suffix `.npz` or `.json` is ignored.
        trained: The trained network.
        storage: The type of stored parameters; `checkpoint.save` says what float16 rounds.
        **notes: Further entries of the description, plain JSON, such as the command.
    """
    description = {
        "pretrain": configuration.describe(trained.settings),
        "image_shape": list(trained.image_shape),
        "storage": storage,
        **notes,
        "history": list(trained.history),
    }
    return checkpoint.save(path, _variables(trained), description, storage)


def load(path: str | Path) -> Trained:
    """Load a trained network that `save` wrote: settings, float32 parameters and history.

    Raises:
        CheckpointError: If a file is absent or truncated, or its arrays are not those of the network that its settings
            describe.
    """
    description = checkpoint.describe(path)
    shape, history = description.get("image_shape"), description.get("history")
    if not _is_shape(shape) or not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise checkpoint.CheckpointError(
            f"{checkpoint.Files.of(path).description} lacks image_shape (three whole numbers) or history (a list of rows); "
            "export the network again."
        )
    settings = configuration.restore(description.get("pretrain"), [Pretrain])
    height, width, channels = shape
    shapes = jax.eval_shape(lambda: _variables(initial(settings, (height, width, channels))))
    variables = checkpoint.load(path, shapes)
    return Trained(settings, (height, width, channels), variables["params"], variables["frozen"], tuple(history))


def _is_shape(value: configuration.Plain) -> TypeGuard[list[int]]:
    """Test whether a value is a list of three positive whole numbers."""
    return isinstance(value, list) and len(value) == 3 and all(type(size) is int and size > 0 for size in value)


def _variables(holder: Trained | TrainState) -> PyTree:
    """Return parameters and frozen state as one tree."""
    return {"params": holder.params, "frozen": holder.frozen}
