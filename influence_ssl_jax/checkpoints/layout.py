"""Find the network in a checkpoint, and convert its arrays.

All formats of checkpoints share this.
"""

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
from influence_ssl_jax.checkpoints.tensors import Foreign, Tensor, is_safetensors, read_safetensors, read_torch
from influence_ssl_jax.data.channel_statistics import STATISTICS
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.losses import BYOL, BarlowTwins, Loss, SimCLR, SimSiam, VICReg
from influence_ssl_jax.types import PyTree

State: TypeAlias = Mapping[str, Tensor]
"""Arrays by their names in torch."""
Source: TypeAlias = tuple[str, Callable[[np.ndarray], np.ndarray]]
"""The torch name of an array, and the function that converts it to an array of flax."""

IMAGENET = STATISTICS["imagenet"]
"""Mean and standard deviation of each channel, for pixels in [0, 1]."""
COUNTER = "num_batches_tracked"
"""Suffix of the names of torch's counters of batches, which no network reads."""
SHOWN = 8
"""Number of names that an error lists."""


Pretraining: TypeAlias = Literal["simclr", "byol", "barlow_twins", "simsiam", "vicreg"]
"""Names of pretraining losses, and of the views that each compares."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """Settings that a file does not contain.

    Attributes:
        size: Height and width of the input in pixels; None takes those of the format.
        mean: Mean of each channel of pixels in [0, 1]; None takes that of the format.
        std: Standard deviation of each channel; None takes that of the format.
        heads: Number of attention heads of a transformer; None takes width / 64.
        part: Which of the two networks in a file of DINO.
        dataset: Training data of a solo-learn network, for its mean, deviation and size.
        loss: The pretraining loss.
        temperature: Temperature of SimCLR's loss.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    heads: int | None = None
    part: Literal["teacher", "student"] = "teacher"
    dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None
    loss: Pretraining | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Refuse sizes without pixels, and attention without heads."""
        for name in ("size", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CheckpointError(f"--{name} must be at least 1, got {value}.")


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A file of weights, whose arrays are not yet read.

    Attributes:
        path: Path of the file.
        content: Its entries by name.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "WeightsFile":
        """Open a `.pth`, `.pt`, `.ckpt`, `.bin`, `.tar` or `.safetensors` file.

        Raises:
            CheckpointError: If it is absent or damaged, or is not a dict of arrays.
        """
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}; check the path.")
        content = read_safetensors(path) if is_safetensors(path) else read_torch(path)
        if isinstance(content, Foreign):
            raise CheckpointError(
                f"{path} holds a whole model, an object of {content.name}, which would have to be executed. Save only its "
                "weights with the program that made it: torch.save(model.state_dict(), file)."
            )
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of arrays.")
        return cls(path, content)

    def group(self, name: str) -> State:
        """Return the arrays under the entry `name`, or at the top.

        An empty `name` is the top of the file.
        """
        entry = self.content.get(name) if name else self.content
        entries = entry.items() if isinstance(entry, dict) else ()
        return {str(key): value for key, value in entries if isinstance(value, Tensor)}

    def groups(self) -> list[str]:
        """List the entries that hold arrays.

        An empty name is the top of the file.
        """
        return [name for name in ("", *map(str, self.content)) if self.group(name)]

    def unreadable(self) -> dict[str, str]:
        """Return arrays of unknown types: a name and the type."""
        levels = [self.content, *(value for value in self.content.values() if isinstance(value, dict))]
        entries = [entry for level in levels for entry in level.items()]
        return {
            str(key): value.name
            for key, value in entries
            if isinstance(value, Foreign) and value.name.startswith("torch.") and "." in str(key)
        }

    def beside(self, name: str) -> Mapping[str, Any]:
        """Read a JSON object from another file of the folder.

        It is empty if there is no such file.

        Raises:
            CheckpointError: If the file is not JSON.
        """
        path = self.path.with_name(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise CheckpointError(f"{path}, beside the weights, is not readable JSON ({error}).") from error
        return content if isinstance(content, dict) else {}

    def others(self, group: str) -> dict[str, str]:
        """Describe the entries of the file outside a group."""
        if not group:
            return {str(key): _kind(value) for key, value in self.content.items() if not isinstance(value, Tensor)}
        return {str(key): _kind(value) for key, value in self.content.items() if key != group}


@dataclasses.dataclass(frozen=True)
class Imported:
    """An encoder from a file, and a description of the import.

    Attributes:
        encoder: The encoder.
        recognised: Recognised properties: a word and its value.
        unread: Entries of the file that are not read: a name and the reason.
    """

    encoder: Encoder
    recognised: Mapping[str, str]
    unread: Mapping[str, str]


class Format(abc.ABC):
    """A layout of checkpoints.

    Subclasses are final frozen dataclasses; the registry is in `checkpoints/__init__.py`.
    """

    name: str
    """Its name for `--as`."""
    summary: str
    """Its description in one line."""

    @property
    @abc.abstractmethod
    def choices(self) -> frozenset[str]:
        """The fields of `Choices` that have an effect.

        Size, mean and std always have one.
        """

    @abc.abstractmethod
    def recognises(self, file: WeightsFile) -> bool:
        """Test whether names in the file belong to this format only."""

    @abc.abstractmethod
    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read the network.

        Raises:
            CheckpointError: If arrays are missing, superfluous or of another shape, or a choice is missing; the message
                names them.
        """


def locate(
    file: WeightsFile, groups: Sequence[str], prefixes: Sequence[str], marker: str, name: str
) -> tuple[str, str, dict[str, Tensor]]:
    """Find the entry and the prefix under which `marker` names an array.

    Returns:
        The entry, the prefix, and the arrays of the entry by their complete names.

    Raises:
        CheckpointError: If there is no such array; the message shows the names in the file.
    """
    for group in groups:
        state = dict(file.group(group))
        for prefix in prefixes:
            if f"{prefix}{marker}" in state:
                return group, prefix, state
    looked = ", ".join(f"{group or 'the top'} → {prefix}{marker}" for group in groups for prefix in prefixes)
    raise CheckpointError(
        f"{file.path} is not in the layout {name}: there is no {looked}. It holds {describe_names(file)}. Name its layout "
        "with --as."
    )


def locate_only(
    file: WeightsFile, groups: Sequence[str], prefixes: Sequence[str], marker: str, name: str
) -> tuple[str, str, dict[str, Tensor]]:
    """Find `marker` as `locate` does, or under its only other name.

    Raises:
        CheckpointError: If there is no such array, or there are several, none of them under the layout's own names.
    """
    if any(f"{prefix}{marker}" in file.group(group) for group in groups for prefix in prefixes):
        return locate(file, groups, prefixes, marker, name)
    networks = [
        (group, key.removesuffix(marker))
        for group in file.groups()
        for key in file.group(group)
        if key == marker or key.endswith(f".{marker}")
    ]
    if len(networks) == 1:
        group, prefix = networks[0]
        return group, prefix, dict(file.group(group))
    if networks:
        places = ", ".join("/".join(filter(None, place)).rstrip(".") or "the top" for place in networks)
        raise CheckpointError(
            f"{file.path} has several networks of the layout {name}: {places}. Save the arrays of one of them to a file of "
            "their own."
        )
    raise CheckpointError(
        f"{file.path} is not in the layout {name}: it has no array …{marker}. It holds {describe_names(file)}. Name its "
        "layout with --as."
    )


def describe_place(group: str, prefix: str, groups: Sequence[str], prefixes: Sequence[str]) -> dict[str, str]:
    """Describe where `locate_only` found the network, if elsewhere.

    It is empty if entry and prefix are the layout's own.
    """
    own = group in groups and prefix in prefixes
    return {} if own else {"found under": "/".join(filter(None, (group, prefix.rstrip("."))))}


def describe_names(file: WeightsFile) -> str:
    """Describe a file by some names of its arrays, for errors."""
    names = [f"{group}/{key}" if group else key for group in file.groups() for key in file.group(group)]
    if not names:
        return "no arrays at its top or one level below: save the dict of arrays itself"
    step = -(-len(names) // SHOWN)
    return f"{len(names)} arrays, such as {', '.join(names[::step])}"


def select_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Return arrays under a prefix, without it and torch's batch counters."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.endswith(COUNTER)
    }


def shapes_of(module: nn.Module, to_input: ToInput) -> PyTree:
    """Return the shapes of a module's variables."""
    images = jax.ShapeDtypeStruct((1, to_input.height, to_input.width, to_input.channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)


def fill(
    shapes: PyTree,
    state: State,
    source: Callable[[tuple[str, ...]], Source],
    ignored: Mapping[str, str],
    where: str,
) -> tuple[PyTree, dict[str, str]]:
    """Fill variables with the arrays of a state dict.

    Args:
        shapes: Shapes of the variables to fill.
        state: Arrays by their names in torch.
        source: A function from the path of a variable to the name of its torch array, and its conversion.
        ignored: Patterns (regular expressions) of arrays that the network does not read, and the reason.
        where: Description of the network, for errors.

    Returns:
        The variables in float32, and the arrays that are not read: a name and the reason.

    Raises:
        CheckpointError: If arrays are missing or of another shape, or no pattern allows an unread one; the message
            lists them.
    """
    wanted: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    arrays, used, wrong = {}, set(), []
    for path, leaf in wanted.items():
        name, convert = source(path)
        if name not in state:
            wrong.append(f"{name}: not in the file")
            continue
        used.add(name)
        if "float" not in state[name].dtype:
            wrong.append(f"{name}: of {state[name].dtype} in the file, expected floating-point numbers")
            continue
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


def transpose(array: np.ndarray) -> np.ndarray:
    """Transpose a kernel of torch to the layout of flax.

    [out, in] becomes [in, out]; [out, in, height, width] becomes [height, width, in, out].
    """
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def leaf_source(layer: str, leaf: str) -> Source:
    """Return the torch name of a layer's array, and its conversion."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return f"{layer}.{names.get(leaf, leaf)}", transpose


def input_of(choices: Choices, size: int, shorter: int | None, resize: Literal["bilinear", "bicubic"]) -> ToInput:
    """Return the input transform of a format.

    If another size is chosen, the shorter side before the crop changes in proportion.
    """
    wanted = choices.size or size
    longer = None if shorter is None else round(wanted * shorter / size)
    return ToInput(wanted, wanted, 3, resize, shorter=longer)


def normalisation(
    choices: Choices, usual: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, as chosen or of the format.

    Raises:
        CheckpointError: If only one of them is chosen.
    """
    if (choices.mean is None) != (choices.std is None):
        raise CheckpointError("--mean and --std belong together: give both, or neither.")
    return usual if choices.mean is None or choices.std is None else (choices.mean, choices.std)


def describe_input(to_input: ToInput, mean: Iterable[float], std: Iterable[float]) -> str:
    """Describe preprocessing in words."""
    resize = to_input.resize
    first = f"shorter side to {to_input.shorter}, {resize}, centre " if to_input.shorter else f"{resize} to "
    numbers = [", ".join(f"{value:g}" for value in values) for values in (mean, std)]
    return f"{first}{to_input.height}×{to_input.width}; mean {numbers[0]}; deviation {numbers[1]}"


def loss_of(choices: Choices) -> tuple[Loss | None, str | None]:
    """Return the chosen pretraining loss and the name of its views.

    Both are None if no loss is chosen.

    Raises:
        CheckpointError: If a temperature is given for a loss that has none.
    """
    if choices.temperature is not None and choices.loss != "simclr":
        raise CheckpointError(f"--temperature belongs to --loss simclr, got --loss {choices.loss}.")
    if choices.loss is None:
        return None, None
    losses: dict[Pretraining, Loss] = {
        "simclr": SimCLR(0.2 if choices.temperature is None else choices.temperature),
        "byol": BYOL(),
        "barlow_twins": BarlowTwins(),
        "simsiam": SimSiam(),
        "vicreg": VICReg(),
    }
    return losses[choices.loss], choices.loss


def summarise(left: Mapping[str, str]) -> dict[str, str]:
    """Summarise unread arrays by first part of the name and by reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in left.items():
        first = re.match(r"(module\.)?[^.]+", name)
        groups.setdefault((first[0] if first else name, reason), []).append(name)
    return {
        names[0] if len(names) == 1 else f"{first}.… ({len(names)} arrays)": reason
        for (first, reason), names in groups.items()
    }


def summarise_outside(names: Iterable[str]) -> dict[str, str]:
    """Summarise arrays outside the prefix of the network."""
    return summarise({name: "beside the encoder" for name in names if not name.endswith(COUNTER)})


def _kind(value: Any) -> str:
    """Describe an entry of a file in a few words."""
    if isinstance(value, Foreign):
        return f"an object of {value.name}, not created"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"an array {list(value.shape)}"
    return f"{value!r}"[:60]
