"""A trained run as a saved network and as an encoder, and back."""

import dataclasses
from pathlib import Path
from typing import TypeGuard

import jax

from influence_ssl_jax import checkpoint, configuration
from influence_ssl_jax.augment.recipes import PRETRAINING
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.encoder import PARTS, Encoder, Heads
from influence_ssl_jax.train.resume import Row
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.train.state import TrainState, initial
from influence_ssl_jax.types import Frozen, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run made.

    Attributes:
        settings: What was run; `settings.objective()` is the training loss in evaluation mode.
        image_shape: (height, width, channels) of the input.
        params: θ.
        frozen: Running statistics, and the target network where there is one.
        history: One row per epoch, from the untrained network (epoch 0) on.
    """

    settings: Pretrain
    image_shape: tuple[int, int, int]
    params: Params
    frozen: Frozen
    history: tuple[Row, ...] = ()

    def encoder(self, input: ToInput | None = None) -> Encoder:
        """Return the encoder with its heads, the loss it was trained with, and its views.

        Args:
            input: How an image becomes its input; the size of its images alone where None.
        """
        height, width, channels = self.image_shape
        taken = input or ToInput(height, width, 1 if channels == 1 else 3)
        loss = self.settings.loss
        parts = PARTS["predictor" if loss.compares_with_target else "projector"][1:]
        named, views = self.settings.views, self.settings.objective().views
        held = {part: self.params[part] for part in parts if part in self.params}
        heads = Heads(held, loss, named if PRETRAINING[named] == views else views)
        name = f"{type(loss).__name__}, ResNet-18 of width {self.settings.architecture.width}"
        own = {"backbone": self.params["backbone"]}
        return Encoder(self.settings.network("encode"), own, self.frozen, taken, name, heads)


def save(
    path: str | Path, trained: Trained, storage: checkpoint.Storage = "float32", **notes: configuration.Plain
) -> checkpoint.Files:
    """Write `<path>.npz` and `<path>.json`: everything that the training loss reads, and how it was made.

    Args:
        path: Where to.
        trained: What is written.
        storage: The type of stored parameters; see `checkpoint.save` for what float16 rounds.
        **notes: More to record, plain JSON, such as the command.
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
    """The network saved at `path`, whole: its objective, float32 parameters, and history.

    Raises:
        CheckpointError: A file is absent, truncated, or does not hold the network that its settings describe.
    """
    description = checkpoint.describe(path)
    shape, history = description.get("image_shape"), description.get("history")
    if not _is_shape(shape) or not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise checkpoint.CheckpointError(
            f"{checkpoint.Files.of(path).description} does not say what image_shape (three whole numbers) and history (a "
            "list of rows) are; export the network again."
        )
    settings = configuration.restore(description.get("pretrain"), [Pretrain])
    height, width, channels = shape
    shapes = jax.eval_shape(lambda: _variables(initial(settings, (height, width, channels))))
    variables = checkpoint.load(path, shapes)
    return Trained(settings, (height, width, channels), variables["params"], variables["frozen"], tuple(history))


def _is_shape(value: configuration.Plain) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == 3 and all(type(size) is int and size > 0 for size in value)


def _variables(holder: Trained | TrainState) -> PyTree:
    return {"params": holder.params, "frozen": holder.frozen}
