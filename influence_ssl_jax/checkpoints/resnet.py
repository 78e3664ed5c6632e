"""Read ResNets with torchvision's names.

Barlow Twins, VICReg, MoCo, SwAV and DINO also save these names.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.layout import (
    IMAGENET,
    Choices,
    Format,
    Imported,
    Source,
    State,
    WeightsFile,
    describe_input,
    describe_place,
    fill,
    input_of,
    leaf_source,
    locate,
    locate_only,
    loss_of,
    normalisation,
    select_prefix,
    shapes_of,
    summarise,
    summarise_outside,
)
from influence_ssl_jax.data.to_input import ToInput
from influence_ssl_jax.encoder import Encoder, Heads
from influence_ssl_jax.losses import Loss, VICReg
from influence_ssl_jax.nets.heads import NormalisedProjector, Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import ResNet, Stem
from influence_ssl_jax.types import Frozen, Params, PyTree

Head: TypeAlias = Projector | NormalisedProjector | Predictor
MARKER = "layer1.0.conv1.weight"
"""An array that every ResNet has."""
BESIDE = {
    r"fc\.": "classifier",
    r"classifier\.": "classifier",
    r"head\.": "head that this package has no form for",
    r"prototypes": "prototypes",
    r"projection_head\.": "head that this package has no form for",
    r"encoder_k\.": "momentum encoder",
    r"queue": "queue of negatives",
}
"""Arrays beside a backbone that no representation reads, and their descriptions."""
_LAYER = re.compile(r"layer(\d)_(\d+)")
_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
NAMES: dict[tuple[str, tuple[int, ...]], str] = {("basic", (2, 2, 2, 2)): "-18", ("basic", (3, 4, 6, 3)): "-34"} | {
    ("bottleneck", (3, 4, 6, 3)): "-50",
    ("bottleneck", (3, 4, 23, 3)): "-101",
}


@dataclasses.dataclass(frozen=True)
class TorchvisionResNet(Format):
    """The format of a ResNet-18/34/50/101 with torchvision's names.

    Attributes:
        name: Its name for `--as`.
        summary: Its description in a few words.
        groups: Entries of the file that can hold the network; the first one with a network is read.
        prefixes: Prefixes that its names can have.
        sign: A regular expression for names that only this layout has; None if the layout is never recognised and must
            be named.
        stem: `imagenet`, or the 3×3 stem with which this layout reads a 3×3 kernel.
        projectors: Prefixes that its projector can have.
        resize: Interpolation of the resize.
        elsewhere: Whether the only network of a file is read also under other entries and prefixes.
        loss: The authors' weights of their own loss, if they differ from its default ones.
    """

    name: str
    summary: str
    groups: tuple[str, ...]
    prefixes: tuple[str, ...]
    sign: str | None = None
    stem: Stem = "imagenet"
    projectors: tuple[str, ...] = ()
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    elsewhere: bool = False
    loss: Loss | None = None

    @property
    def choices(self) -> frozenset[str]:
        """The choices that have an effect."""
        return frozenset({"loss", "temperature", *({"part"} if "teacher" in self.groups else ())})

    def recognises(self, file: WeightsFile) -> bool:
        """Test whether names in the file belong to this format only."""
        if self.sign is None:
            return False
        for group in self._groups(Choices()):
            state = file.group(group)
            if any(f"{prefix}{MARKER}" in state for prefix in self.prefixes):
                return any(re.match(self.sign, name) for name in state)
        return False

    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read backbone and projector."""
        find = locate_only if self.elsewhere else locate
        group, prefix, state = find(file, self._groups(choices), self.prefixes, MARKER, self.name)
        projector = next((p for p in self.projectors if any(name.startswith(p) for name in state)), None)
        head = {} if projector is None else select_prefix(state, projector)
        if head.keys() <= {"weight", "bias"}:  # a single layer, as in the first version of MoCo
            head = {f"0.{name}": tensor for name, tensor in head.items()}
        heads = {"projector": head} if head else {}
        inside = select_prefix(state, prefix)
        backbone = {
            name: t for name, t in inside.items() if not (projector and f"{prefix}{name}".startswith(projector))
        }
        module = module_of(backbone, self.stem, self.name)
        small = module.stem != "imagenet"
        to_input = input_of(choices, 32 if small else 224, None if small else 256, "bicubic" if small else self.resize)
        if small and choices.mean is None:
            raise CheckpointError(
                f"{file.path} has a 3×3 stem, and does not say how its images were normalised; pass --mean and --std."
            )
        mean, std = normalisation(choices, IMAGENET)
        loss, views = loss_of(choices)
        if isinstance(loss, type(self.loss)):
            loss = self.loss
        made = encoder_of(module, backbone, heads, to_input, mean, std, file, loss, views)
        outside = summarise_outside(name for name in state if not name.startswith((prefix, *filter(None, [projector]))))
        place = describe_place(group, prefix, self._groups(choices), self.prefixes)
        recognised = {"layout": f"{self.summary} (--as {self.name})", **place, **made.recognised}
        return Imported(made.encoder, recognised, {**made.unread, **outside, **file.others(group)})

    def _groups(self, choices: Choices) -> tuple[str, ...]:
        """Return the entries to search; of teacher and student, the chosen one."""
        pair = {"teacher", "student"}
        return tuple(name for name in self.groups if name not in pair - {choices.part})


def module_of(state: State, stem: Stem, name: str) -> ResNet:
    """Infer a ResNet's architecture from its arrays' names and shapes.

    Args:
        state: Arrays of the backbone.
        stem: Stem of the layout, because a 3×3 kernel can belong to two stems.
        name: Name of the layout, for errors.

    Raises:
        CheckpointError: If the kernel is not that of the stem, or there is none.
    """
    if "conv1.weight" not in state:
        raise CheckpointError(f"The layout {name} has an array conv1.weight, which is not in the file.")
    kernel = state["conv1.weight"].shape
    if kernel[2:] == (7, 7):
        if stem == "cifar":
            raise CheckpointError(
                f"The layout {name} has a 3×3 stem; conv1.weight is {list(kernel)}. Use --as torchvision."
            )
        stem = "imagenet"
    elif kernel[2:] != (3, 3) or stem == "imagenet":
        raise CheckpointError(
            f"The layout {name} has a {'7×7' if stem == 'imagenet' else '3×3'} stem; conv1.weight is {list(kernel)}. A 3×3 "
            "stem has two forms that give different embeddings: --as solo_learn has padding 2, --as resnet_cifar padding 1."
        )
    blocks: dict[int, int] = {}
    for key in state:
        match = re.match(r"layer(\d)\.(\d+)\.", key)
        if match:
            stage, number = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), number + 1)
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    return ResNet(kernel[0], None, counts, block, stem)


def backbone_source(path: tuple[str, ...]) -> Source:
    """Return the torch name of a ResNet's variable, and its conversion."""
    *layers, leaf = path
    names = [_LAYER.sub(r"layer\1.\2", _SHORTCUT.get(layer, layer)) for layer in layers]
    return leaf_source(".".join(names), leaf)


def encoder_of(
    module: ResNet,
    backbone: State,
    heads: Mapping[str, State],
    to_input: ToInput,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    file: WeightsFile,
    loss: Loss | None,
    views: str | None,
    target: Callable[[Params, Frozen], Frozen] | None = None,
) -> Imported:
    """Make an encoder from a ResNet and its heads.

    Args:
        module: The backbone.
        backbone: Arrays of the backbone.
        heads: Arrays of `projector` and `predictor`, if the file has them.
        to_input: The input transform.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        file: The file of the arrays.
        loss: The pretraining loss.
        views: Name of the views that the loss compared.
        target: A function from parameters and statistics to the target network, for a loss that compares with one.
    """
    shapes = shapes_of(module, to_input)
    variables, left = fill(
        dict(shapes), backbone, lambda path: backbone_source(path[1:]), BESIDE, describe_resnet(module)
    )
    params, statistics = variables["params"], variables["batch_stats"]
    unread, tops, head_params, running = summarise(left), {}, {}, {}
    into = module.width * 2 ** (len(module.blocks) - 1) * (4 if module.block == "bottleneck" else 1)
    for part, state in heads.items():
        top, why = head_of(state, into, part) if into else (None, "the head below it was not read")
        if top is None:
            unread[f"{part}.… ({len(state)} arrays)"] = why
            into = 0
            continue
        tops[part] = top
        head_params[part], batch_stats = fill_head(top, state, part)
        running |= {part: batch_stats} if batch_stats else {}
        into = getattr(top, "output", into)
    recognised = {"network": describe_resnet(module)}
    if loss is not None and "projector" not in tops:
        raise CheckpointError(
            f"--loss needs the projector that {type(loss).__name__} compared, and none was read ("
            f"{'; '.join(unread.values()) or 'the file has none'}). Leave --loss out."
        )
    if not tops:
        network = Network(module, mean=mean, std=std)
        encoder = Encoder(network, params, {"batch_stats": statistics}, to_input, file.path.stem)
    else:
        whole = SelfSupervised(module, tops["projector"], tops.get("predictor"))
        frozen: Frozen = {"batch_stats": {"backbone": statistics, **running}}
        if loss is not None and loss.compares_with_target:
            if "predictor" not in tops or (target is None and not loss.target_is_online):
                needed = "a predictor" if loss.target_is_online else "a target network and a predictor"
                raise CheckpointError(f"{type(loss).__name__} needs {needed}; they were not read from the file.")
            if target is not None and not loss.target_is_online:
                frozen["target"] = target({"backbone": params, **head_params}, frozen["batch_stats"])
        network = Network(whole, "encode", mean=mean, std=std)
        kept = Heads(head_params, loss, views if loss else None)
        encoder = Encoder(network, {"backbone": params}, frozen, to_input, file.path.stem, kept)
        recognised |= {part: _describe_head(top) for part, top in tops.items()}
        recognised["pretraining loss"] = f"{loss}, views {views}" if loss else "not known (name it with --loss)"
    recognised["input"] = describe_input(to_input, mean, std)
    return Imported(encoder, recognised, unread)


def describe_resnet(module: ResNet) -> str:
    """Describe a ResNet in words."""
    number = NAMES.get((module.block, module.blocks), f" of {module.block} blocks {module.blocks}")
    stem = {
        "imagenet": "7×7 stem with max-pooling",
        "cifar": "3×3 stem, padding 1",
        "solo_learn": "3×3 stem, padding 2",
    }[module.stem]
    return f"ResNet{number}, width {module.width}, {stem}"


def head_of(state: State, into: int, part: str) -> tuple[Any, str]:
    """Infer the form of a head saved as torch's `Sequential`.

    Its layers are Linear, BatchNorm1d and ReLU.

    Returns:
        The module and an empty text, or None and the reason why this package has no such head.
    """
    numbers = {name.split(".")[0] for name in state}
    if not all(number.isdigit() for number in numbers):
        return None, "no sequence of linear layers"
    layers = sorted(map(int, numbers))
    linear = [n for n in layers if f"{n}.weight" in state and len(state[f"{n}.weight"].shape) == 2]
    if not linear:
        return None, "no sequence of linear layers"
    norms = [n for n in layers if n not in linear]
    hidden = {state[f"{n}.weight"].shape[0] for n in linear[:-1]}
    biased = {f"{n}.bias" in state for n in linear[:-1]}
    follows = [n + 1 for n in linear[:-1]]
    # SimSiam: a BatchNorm without scale and shift after the last layer too, and no biases before.
    normalised = norms == [*follows, linear[-1] + 1] and f"{norms[-1]}.weight" not in state and biased == {False}
    if (
        (norms and norms != follows and not normalised)
        or len(hidden) > 1
        or len(biased) > 1
        or state[f"{linear[0]}.weight"].shape[1] != into
    ):
        return None, "its layers are not Linear–(BatchNorm)–ReLU of one hidden width"
    if normalised and part == "projector":
        return NormalisedProjector(hidden.pop(), state[f"{linear[-1]}.weight"].shape[0], len(linear) - 1), ""
    top = Projector(
        hidden=hidden.pop() if hidden else 1,
        output=state[f"{linear[-1]}.weight"].shape[0],
        hidden_layers=len(linear) - 1,
        normalisation="batch" if norms else "none",
        hidden_bias=biased.pop() if biased else True,
        output_bias=f"{linear[-1]}.bias" in state,
    )
    if part == "projector":
        return top, ""
    form = (top.output, top.hidden_layers, top.normalisation, top.output_bias)
    if normalised or form != (into, 1, "batch", True):
        return None, "no predictor of the form Linear–BatchNorm–ReLU–Linear"
    return Predictor(top.hidden, hidden_bias=top.hidden_bias), ""


def fill_head(top: Head, state: State, part: str) -> tuple[Params, PyTree]:
    """Fill a head; return its parameters and its running statistics.

    A normalised output subtracts its running mean, so a bias before it is subtracted from that mean.
    """
    linear = sorted(int(n.split(".")[0]) for n, t in state.items() if n.endswith(".weight") and len(t.shape) == 2)

    def source(path: tuple[str, ...]) -> Source:
        layer, leaf = path[-2:]
        if layer == "output":
            return leaf_source(str(linear[-1]), leaf)
        if layer == "bn":
            name, convert = leaf_source(str(linear[-1] + 1), leaf)
            return name, (lambda array: convert(array) - shift) if leaf == "mean" else convert
        kind, number = re.fullmatch(r"(dense|bn)(\d+)", layer).groups()  # type: ignore[union-attr]
        return leaf_source(str(linear[int(number)] + (kind == "bn")), leaf)

    shift = np.zeros(())
    if isinstance(top, NormalisedProjector) and f"{linear[-1]}.bias" in state:
        state = dict(state)
        shift = state.pop(f"{linear[-1]}.bias").numpy()
    first = state[f"{linear[0]}.weight"].shape[1]
    features = jax.ShapeDtypeStruct((1, first), np.float32)
    shapes = jax.eval_shape(lambda x: top.init(jax.random.key(0), x, train=False), features)
    variables, _ = fill(dict(shapes), state, source, {}, f"the {part}")
    return variables["params"], variables.get("batch_stats")


def _describe_head(top: Head) -> str:
    """Describe a head in words."""
    if isinstance(top, Predictor):
        return f"Linear–BatchNorm–ReLU–Linear, hidden {top.hidden}"
    if isinstance(top, NormalisedProjector):
        layers = f"(Linear–BatchNorm–ReLU) × {top.hidden_layers}, Linear–BatchNorm without scale and shift"
        return f"{layers}: hidden {top.hidden}, output {top.output}"
    step = "Linear–BatchNorm–ReLU" if top.normalisation == "batch" else "Linear–ReLU"
    return f"({step}) × {top.hidden_layers}, Linear: hidden {top.hidden}, output {top.output}"


TORCHVISION = TorchvisionResNet(
    "torchvision",
    "ResNet under torchvision's names",
    ("", "state_dict", "model"),
    ("", "module."),
    sign=r"(module\.)?(conv1|fc)\.",
    elsewhere=True,
)
RESNET_CIFAR = TorchvisionResNet(
    "resnet_cifar",
    "ResNet under torchvision's names with a 3×3 stem of padding 1",
    ("", "state_dict", "model"),
    ("", "module.", "backbone.", "encoder."),
    stem="cifar",
    elsewhere=True,
)
BARLOW_TWINS = TorchvisionResNet(
    "barlow_twins",
    "Barlow Twins' checkpoint",
    ("model", ""),
    ("module.backbone.", "backbone."),
    sign=r"(module\.)?bn\.running_mean",
    projectors=("module.projector.", "projector."),
)
VICREG = TorchvisionResNet(
    "vicreg",
    "VICReg's checkpoint",
    ("model", ""),
    ("module.backbone.", "backbone."),
    sign=r"module\.projector\.",
    projectors=("module.projector.", "projector."),
    loss=VICReg(variance=12.5),  # their code takes the mean of both views' hinges, not the sum
)
MOCO = TorchvisionResNet(
    "moco",
    "MoCo's checkpoint, query encoder",
    ("state_dict", ""),
    ("module.encoder_q.", "encoder_q."),
    sign=r"(module\.)?encoder_q\.",
    projectors=("module.encoder_q.fc.", "encoder_q.fc."),
)
SWAV = TorchvisionResNet(
    "swav",
    "SwAV's checkpoint",
    ("state_dict", ""),
    ("module.", ""),
    sign=r"(module\.)?(prototypes|projection_head)\.",
    projectors=("module.projection_head.", "projection_head."),
)
DINO_RESNET = TorchvisionResNet(
    "dino_resnet",
    "DINO's checkpoint of a ResNet",
    ("teacher", "student", ""),
    ("module.backbone.", "backbone.", "module.", ""),
    sign=r"(module\.)?(backbone\.)?head\.(mlp|last_layer)",
    resize="bicubic",
)
