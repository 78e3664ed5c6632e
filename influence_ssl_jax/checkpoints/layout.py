"""What formats of checkpoints share: which part of a file is the network, and how its arrays become flax variables."""

import abc
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.safetensors_file import read_safetensors
from influence_ssl_jax.checkpoints.tensor import Tensor
from influence_ssl_jax.checkpoints.torch_file import Foreign, read_torch
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.losses import BYOL, BarlowTwins, Loss, SimCLR
from influence_ssl_jax.types import PyTree

State: TypeAlias = Mapping[str, Tensor]
"""Arrays by torch's names."""
Source: TypeAlias = tuple[str, Callable[[np.ndarray], np.ndarray]]
"""The torch name of an array, and what makes a flax array of it."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of a channel, of pixels in [0, 1]."""
COUNTER = "num_batches_tracked"
"""How torch's counters of batches are called; nothing reads them."""
SHOWN = 8
"""Names that an error lists."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a file does not say, and a user may.

    Attributes:
        size: Height and width of the input in pixels; the format's own where None.
        mean: Per-channel mean of pixels in [0, 1]; the format's own where None.
        std: Per-channel standard deviation; the format's own where None.
        heads: Attention heads of a transformer; width / 64 where None.
        part: Which of two networks in a file of DINO.
        dataset: What a solo-learn network was trained on, for its mean, deviation and size.
        loss: What it was pretrained with.
        temperature: Of SimCLR's loss.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    heads: int | None = None
    part: Literal["teacher", "student"] = "teacher"
    dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None
    loss: Literal["simclr", "byol", "barlow_twins"] | None = None
    temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A file of weights, its arrays not yet read.

    Attributes:
        path: The file.
        content: What it holds, by name.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "WeightsFile":
        """Open a `.pth`, `.pt`, `.ckpt`, `.bin`, `.tar` or `.safetensors` file.

        Raises:
            CheckpointError: It is absent, damaged, or holds no dict of arrays.
        """
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}; check the path.")
        content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        if isinstance(content, Foreign):
            raise CheckpointError(
                f"{path} holds a whole model, an object of {content.name}, which would have to be executed. Save its "
                "weights alone where it was made: torch.save(model.state_dict(), file)."
            )
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of arrays.")
        return cls(path, content)

    def group(self, name: str) -> State:
        """Return the arrays under an entry of the file, or at its top where `name` is empty."""
        held = self.content.get(name) if name else self.content
        entries = held.items() if isinstance(held, dict) else ()
        return {str(key): value for key, value in entries if isinstance(value, Tensor)}

    def beside(self, name: str) -> Mapping[str, Any]:
        """Return a JSON object that lies beside the file; empty where there is none."""
        path = self.path.with_name(name)
        try:
            held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise CheckpointError(f"{path}, beside the weights, is not readable JSON ({error}).") from error
        return held if isinstance(held, dict) else {}

    def others(self, group: str) -> dict[str, str]:
        """Name the entries of the file outside a group, and what they are."""
        if not group:
            return {str(key): _kind(value) for key, value in self.content.items() if not isinstance(value, Tensor)}
        return {str(key): _kind(value) for key, value in self.content.items() if key != group}


@dataclasses.dataclass(frozen=True)
class Imported:
    """An encoder out of a file, and what is to be said of it.

    Attributes:
        encoder: The encoder.
        recognised: What was recognised: a word and its value.
        unread: What was left in the file: a name and the reason.
    """

    encoder: Encoder
    recognised: Mapping[str, str]
    unread: Mapping[str, str]


class Format(abc.ABC):
    """A layout of checkpoints. Subclasses are final frozen dataclasses; the one list is in `checkpoints/__init__.py`."""

    name: str
    """What `--as` calls it."""
    summary: str
    """What it is, in one line."""

    @abc.abstractmethod
    def recognises(self, file: WeightsFile) -> bool:
        """Tell whether names in the file belong to this format and to no other."""

    @abc.abstractmethod
    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read the network.

        Raises:
            CheckpointError: Arrays are missing, superfluous or of another shape, or a choice is missing; named.
        """


def located(
    file: WeightsFile, groups: Sequence[str], prefixes: Sequence[str], marker: str, name: str
) -> tuple[str, str, dict[str, Tensor]]:
    """Find the network: the entry of the file and the prefix under which an array named `marker` is.

    Returns:
        The entry, the prefix, and the entry's arrays by their whole names.

    Raises:
        CheckpointError: It is nowhere; the names that are there are shown.
    """
    for group in groups:
        state = dict(file.group(group))
        for prefix in prefixes:
            if f"{prefix}{marker}" in state:
                return group, prefix, state
    there = [f"{group}/{key}" if group else key for group in ("", *file.content) for key in list(file.group(group))[:4]]
    looked = ", ".join(f"{group or 'the top'} → {prefix}{marker}" for group in groups for prefix in prefixes)
    raise CheckpointError(
        f"{file.path} is not in the layout {name}: there is no {looked}. It holds "
        f"{', '.join(there[:SHOWN]) or 'no arrays'} … Name the layout that it has with --as."
    )


def within(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the arrays under a prefix, without it; torch's counters of batches are left out."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.endswith(COUNTER)
    }


def shapes_of(module: nn.Module, taken: ToInput) -> PyTree:
    """Return the shapes of a module's variables."""
    images = jax.ShapeDtypeStruct((1, taken.height, taken.width, taken.channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)


def filled(
    shapes: PyTree,
    state: State,
    source: Callable[[tuple[str, ...]], Source],
    ignored: Mapping[str, str],
    where: str,
) -> tuple[PyTree, dict[str, str]]:
    """Fill variables with the arrays of a state dict.

    Args:
        shapes: The variables to fill, as shapes.
        state: Arrays by torch's names.
        source: From the path of a variable to the torch array that it comes from, and how.
        ignored: Patterns (regular expressions) of arrays that the network does not read, and the reason.
        where: The network, for errors.

    Returns:
        The variables, float32, and what was left: a name and the reason.

    Raises:
        CheckpointError: Arrays are missing, of another shape, or there are others that no pattern allows; all are named.
    """
    wanted: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    arrays, used, wrong = {}, set(), []
    for path, leaf in wanted.items():
        name, convert = source(path)
        if name not in state:
            wrong.append(f"{name}: not in the file")
            continue
        used.add(name)
        try:
            array = convert(state[name].numpy())
        except (ValueError, IndexError):
            array = state[name].numpy()
        if array.shape != leaf.shape:
            wrong.append(f"{name}: {list(state[name].shape)} in the file gives {array.shape}, expected {leaf.shape}")
            continue
        arrays[path] = jnp.asarray(array, jnp.float32)
    left = {}
    for name in sorted(state.keys() - used):
        reason = next((why for pattern, why in ignored.items() if re.match(pattern, name)), None)
        if reason is None:
            wrong.append(f"{name}: {list(state[name].shape)} in the file, and no place for it in the network")
        else:
            left[name] = reason
    if wrong:
        listed = sorted(set(wrong))
        more = f"\n  … and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise CheckpointError(
            f"The file is not that of {where}; {len(listed)} arrays differ:\n  " + "\n  ".join(listed[:SHOWN]) + more
        )
    return unflatten_dict(arrays), left


def transposed(array: np.ndarray) -> np.ndarray:
    """Bring torch's [out, in] and [out, in, height, width] to flax's [in, out] and [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def leaf_source(layer: str, leaf: str) -> Source:
    """Return the torch name of a layer's array, and how it is converted."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return f"{layer}.{names.get(leaf, leaf)}", transposed


def input_of(choices: Choices, size: int, shorter: int | None, resize: Literal["bilinear", "bicubic"]) -> ToInput:
    """Return the input of a format, or of another size in the same proportion to what is cropped."""
    wanted = choices.size or size
    longer = None if shorter is None else round(wanted * shorter / size)
    return ToInput(wanted, wanted, 3, resize, shorter=longer)


def normalisation(
    choices: Choices, usual: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation: those that were chosen, or the format's.

    Raises:
        CheckpointError: One was chosen without the other.
    """
    if (choices.mean is None) != (choices.std is None):
        raise CheckpointError("--mean and --std belong together: give both, or neither.")
    return usual if choices.mean is None or choices.std is None else (choices.mean, choices.std)


def said(taken: ToInput, mean: Iterable[float], std: Iterable[float]) -> str:
    """Describe preprocessing in words."""
    first = f"shorter side to {taken.shorter}, {taken.resize}, centre " if taken.shorter else f"{taken.resize} to "
    numbers = [", ".join(f"{value:g}" for value in values) for values in (mean, std)]
    return f"{first}{taken.height}×{taken.width}; mean {numbers[0]}; deviation {numbers[1]}"


def loss_of(choices: Choices) -> tuple[Loss | None, str | None]:
    """Return the pretraining loss that was chosen, and the name of the views it compares; a file says neither.

    Raises:
        CheckpointError: A temperature is given for a loss that has none.
    """
    if choices.temperature is not None and choices.loss != "simclr":
        raise CheckpointError(f"--temperature belongs to --loss simclr, got --loss {choices.loss}.")
    if choices.loss is None:
        return None, None
    temperature = 0.2 if choices.temperature is None else choices.temperature
    losses: dict[str, Loss] = {"simclr": SimCLR(temperature), "byol": BYOL(), "barlow_twins": BarlowTwins()}
    return losses[choices.loss], choices.loss


def grouped(left: Mapping[str, str]) -> dict[str, str]:
    """Name arrays that were left unread by what they share: one line for each first word and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in left.items():
        first = re.match(r"(module\.)?[^.]+", name)
        groups.setdefault((first[0] if first else name, reason), []).append(name)
    return {
        names[0] if len(names) == 1 else f"{first}.… ({len(names)} arrays)": reason
        for (first, reason), names in groups.items()
    }


def beside(names: Iterable[str]) -> dict[str, str]:
    """Name the arrays that lie beside the network, outside its prefix."""
    return grouped({name: "beside the encoder" for name in names if not name.endswith(COUNTER)})


def _kind(value: Any) -> str:
    if isinstance(value, Foreign):
        return f"an object of {value.name}, not made"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"an array {list(value.shape)}"
    return f"{value!r}"[:60]
