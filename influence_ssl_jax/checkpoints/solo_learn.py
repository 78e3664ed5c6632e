"""Read solo-learn's checkpoints: Lightning's `state_dict` of backbone and pretraining heads.

Its ResNets for CIFAR have a 3×3 stem of stride 1 with padding 2, which turns 32×32 pixels into 34×34.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast, get_args

from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.checkpoints.layout import (
    Choices,
    Format,
    Imported,
    Pretraining,
    WeightsFile,
    fill,
    input_of,
    locate,
    loss_of,
    normalisation,
    select_prefix,
    shapes_of,
    summarise_outside,
)
from influence_ssl_jax.checkpoints.resnet import (
    BESIDE,
    MARKER,
    backbone_source,
    describe_resnet,
    encoder_of,
    fill_head,
    head_of,
    module_of,
)
from influence_ssl_jax.data.channel_statistics import STATISTICS
from influence_ssl_jax.losses import BarlowTwins, Loss, SimCLR, VICReg
from influence_ssl_jax.types import Frozen, Params

WEIGHTS: dict[type[Loss], dict[str, str]] = {
    SimCLR: {"temperature": "temperature"},
    BarlowTwins: {"off_diagonal": "lamb", "scale": "scale_loss"},
    VICReg: {"invariance": "sim_loss_weight", "variance": "var_loss_weight", "covariance": "cov_loss_weight"},
}
"""The weights of each loss, and solo-learn's names of them."""


@dataclasses.dataclass(frozen=True)
class SoloLearn(Format):
    """The format of solo-learn's ResNets.

    Projector, predictor and target network are read if they are there.

    Attributes:
        name: Its name for `--as`.
        summary: Its description in a few words.
    """

    name: str = "solo_learn"
    summary: str = "solo-learn's Lightning checkpoint"

    @property
    def choices(self) -> frozenset[str]:
        """The choices that have an effect."""
        return frozenset({"dataset", "loss", "temperature"})

    def recognises(self, file: WeightsFile) -> bool:
        """Test whether Lightning wrote the file, with the names of solo-learn's methods."""
        state = file.group("state_dict")
        backbone = any(f"{prefix}{MARKER}" in state for prefix in ("backbone.", "encoder."))
        heads = ("projector.", "classifier.", "momentum_backbone.")
        return "pytorch-lightning_version" in file.content and backbone and any(n.startswith(heads) for n in state)

    def read(self, file: WeightsFile, choices: Choices) -> Imported:
        """Read backbone and heads.

        `args.json` in the same folder completes the choices that are not set.
        """
        arguments = file.beside("args.json")
        choices = _complete(choices, arguments)
        group, prefix, state = locate(file, ("state_dict", ""), ("backbone.", "encoder."), MARKER, self.name)
        backbone = select_prefix(state, prefix)
        module = module_of(backbone, "solo_learn", self.name)
        if choices.dataset is None and choices.mean is None:
            raise CheckpointError(
                f"{file.path} does not say how its images were normalised, and there is no args.json beside it. Pass "
                "--dataset cifar10, cifar100 or imagenet, or --mean and --std."
            )
        mean, std = normalisation(choices, STATISTICS[choices.dataset or "imagenet"])
        size, shorter = (32, None) if module.stem == "solo_learn" else (224, 256)
        to_input = input_of(choices, size, shorter, "bicubic")
        parts = ("projector", "predictor")
        heads = {
            part: select_prefix(state, f"{part}.") for part in parts if any(n.startswith(f"{part}.") for n in state)
        }
        loss, views = loss_of(choices)
        if loss is not None and choices.loss == arguments.get("method"):
            loss = _weighted(loss, arguments, choices)

        def target(params: Params, running: Frozen) -> Frozen:
            """Read the target network from the momentum networks."""
            slow = {part: select_prefix(state, f"momentum_{part}.") for part in ("backbone", "projector")}
            if not all(slow.values()):
                raise CheckpointError(
                    f"BYOL needs a target network; {file.path} has no momentum_backbone.… and momentum_projector.… for it."
                )
            variables, _ = fill(
                dict(shapes_of(module, to_input)),
                slow["backbone"],
                lambda path: backbone_source(path[1:]),
                BESIDE,
                describe_resnet(module),
            )
            into = next((tensor.shape[1] for tensor in slow["projector"].values() if len(tensor.shape) == 2), 0)
            top, why = head_of(slow["projector"], into, "projector")
            if top is None:
                raise CheckpointError(f"The target network's projector is not that of the online network: {why}.")
            projector, statistics = fill_head(top, slow["projector"], "target network's projector")
            stats = {"backbone": variables["batch_stats"], **({"projector": statistics} if statistics else {})}
            del params, running
            return {"params": {"backbone": variables["params"], "projector": projector}, "batch_stats": stats}

        made = encoder_of(module, backbone, heads, to_input, mean, std, file, loss, views, target)
        read = (prefix, *(f"{part}." for part in heads))
        if loss is not None and loss.compares_with_target and not loss.target_is_online:
            read = (*read, "momentum_backbone.", "momentum_projector.")
        outside = summarise_outside(name for name in state if not name.startswith(read))
        recognised = {"layout": f"{self.summary} (--as {self.name})", **made.recognised}
        return Imported(made.encoder, recognised, {**made.unread, **outside, **file.others(group)})


def _complete(choices: Choices, arguments: Mapping[str, Any]) -> Choices:
    """Complete choices with the arguments that solo-learn wrote beside its checkpoint."""
    data, method = arguments.get("data"), arguments.get("method")
    dataset = data.get("dataset") if isinstance(data, dict) else arguments.get("dataset")
    changes: dict[str, Any] = {}
    if choices.dataset is None and dataset in STATISTICS:
        changes["dataset"] = dataset
    if choices.loss is None and method in get_args(Pretraining):
        changes["loss"] = method
    return dataclasses.replace(choices, **changes)


def _weighted(loss: Loss, arguments: Mapping[str, Any], choices: Choices) -> Loss:
    """Set the weights that solo-learn wrote beside its checkpoint.

    A chosen temperature is kept.
    """
    kwargs = arguments.get("method_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else arguments
    changes = {
        name: float(kwargs[theirs])
        for name, theirs in WEIGHTS.get(type(loss), {}).items()
        if isinstance(kwargs.get(theirs), int | float)
        and not (name == "temperature" and choices.temperature is not None)
    }
    return dataclasses.replace(cast(Any, loss), **changes)
