"""Define the settings of pretraining and the named recipes."""

import dataclasses
import logging
import math
import re
from typing import Literal, TypeAlias

import jax
import optax

from influence_ssl_jax.augment.recipes import PRETRAINING
from influence_ssl_jax.configuration import COUNT, POSITIVE, check_numbers
from influence_ssl_jax.data.channel_statistics import STATISTICS, Statistics
from influence_ssl_jax.losses import BYOL, TRAINING_LOSSES, BarlowTwins, Loss, SimCLR, SimSiam, Supervised, VICReg
from influence_ssl_jax.nets.heads import Classifier, NormalisedProjector, Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import ResNet18, Stem
from influence_ssl_jax.problem import Objective
from influence_ssl_jax.train.optimisers import Lars, Optimiser, Sgd, schedule

Precision: TypeAlias = Literal["float32", "bfloat16"]
"""The type that layers compute in; parameters, statistics and losses are float32 in both."""

Depth: TypeAlias = Literal["encode", "project", "predict"]
"""The representation, the projection, or the prediction."""

_log = logging.getLogger(__name__)

DEFAULT_STATISTICS = "cifar10"
"""The data set whose channel statistics are taken if neither settings nor source say others."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A ResNet-18 for CIFAR and its heads.

    Attributes:
        width: Number of channels of the first stage.
        hidden: Width of the projector's hidden layers.
        output: Width of the projector's output; for the supervised baseline, which has no projector, the number of
            classes.
        hidden_layers: Number of hidden layers of the projector.
        normalisation: Normalisation of the projector's hidden layers.
        predictor_hidden: Width of the predictor's hidden layer, for losses that compare with a target network.
        mean: Mean of each channel, subtracted from pixels in [0, 1]; with `std`, those of CIFAR-10 if not given.
            `influence-ssl pretrain` takes those of its source, if they are known (CIFAR-10 and -100, ImageNet).
        std: Standard deviation of each channel, by which they are divided.
        stem: The layers before the first stage: `cifar` (3×3, padding 1), `solo_learn` (3×3, padding 2) or `imagenet`
            (7×7, stride 2, with max-pooling).
    """

    width: int = 64
    hidden: int = 2048
    output: int = 256
    hidden_layers: int = 1
    normalisation: Literal["batch", "none"] = "batch"
    predictor_hidden: int = 2048
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stem: Stem = "cifar"

    def __post_init__(self) -> None:
        """Refuse layers without channels, and pixels that no input has."""
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean and std are given together or not at all, got mean={self.mean} and std={self.std}.")
        widths = dict.fromkeys(("width", "hidden", "output", "predictor_hidden"), COUNT)
        check_numbers(self, **widths, hidden_layers=(0, COUNT[1]), mean=(-math.inf, math.inf), std=POSITIVE)

    def statistics(self) -> Statistics:
        """Return mean and standard deviation of each channel."""
        return STATISTICS[DEFAULT_STATISTICS] if self.mean is None or self.std is None else (self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Settings of a training run.

    Together with the data they determine the result bit for bit on the same machine.

    Attributes:
        views: The views that the loss compares: simclr, byol, barlow_twins, simsiam, vicreg, supervised or table1
            (`augment.recipes.PRETRAINING`).
        loss: The loss to minimise.
        architecture: Backbone and heads.
        optimiser: The optimiser.
        epochs: Number of passes over the data.
        batch_size: Number of examples of a step; the loss couples them.
        seed: Seed of the initial parameters, the order of the data, and the views.
        precision: The type that training computes in.
        target_momentum: τ of the target network at step 0 (BYOL); it rises to 1 along a cosine.

    Examples:
        >>> from influence_ssl_jax.train import RECIPES
        >>> RECIPES["table3_simclr"].epochs, RECIPES["table3_simclr"].loss
        (250, SimCLR(temperature=0.2))
    """

    views: str = "simclr"
    loss: Loss = dataclasses.field(default_factory=SimCLR)
    architecture: Architecture = dataclasses.field(default_factory=Architecture)
    optimiser: Optimiser = dataclasses.field(default_factory=Lars)
    epochs: int = 1000
    batch_size: int = 256
    seed: int = 0
    precision: Precision = "float32"
    target_momentum: float = 0.99

    def __post_init__(self) -> None:
        """Refuse runs without a step; shorten a warm-up of the run's length."""
        if self.views not in PRETRAINING:
            raise ValueError(f"Unknown views {self.views!r}; known are {', '.join(PRETRAINING)}.")
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"Training needs at least 1 epoch and batches of at least 2, got epochs={self.epochs} and "
                f"batch_size={self.batch_size}."
            )
        check_numbers(self, epochs=COUNT, batch_size=COUNT, target_momentum=(0, 1))
        if self.optimiser.warmup_epochs >= self.epochs:
            shorter = max(1, self.epochs // 10) if self.epochs > 1 else 0
            _log.warning(
                "a warm-up of %d epochs does not end within --training.epochs %d: shortened to %d "
                "(--training.optimiser.warmup-epochs sets it)",
                self.optimiser.warmup_epochs,
                self.epochs,
                shorter,
            )
            object.__setattr__(self, "optimiser", dataclasses.replace(self.optimiser, warmup_epochs=shorter))

    def module(self, dtype: jax.typing.DTypeLike | None = None) -> SelfSupervised:
        """Build backbone, projector and predictor.

        The supervised baseline has a classifier in place of the projector, and outputs of SimSiam's projector are
        normalised. There is a predictor only if the loss compares with a target network.

        Args:
            dtype: The type that layers compute in; None takes that of the parameters.
        """
        shape = self.architecture
        projector = Projector(shape.hidden, shape.output, shape.hidden_layers, shape.normalisation, dtype)
        if isinstance(self.loss, Supervised):
            projector = Classifier(shape.output)
        elif isinstance(self.loss, SimSiam):
            projector = NormalisedProjector(shape.hidden, shape.output, shape.hidden_layers, dtype)
        return SelfSupervised(
            ResNet18(shape.width, dtype, shape.stem),
            projector,
            Predictor(shape.predictor_hidden, dtype) if self.loss.compares_with_target else None,
        )

    def network(self, method: Depth, dtype: jax.typing.DTypeLike | None = None) -> Network:
        """Return the network up to a depth, in evaluation mode."""
        mean, std = self.architecture.statistics()
        return Network(self.module(dtype), method, mean=mean, std=std)

    def objective(self, dtype: jax.typing.DTypeLike | None = None) -> Objective:
        """Return the training loss in evaluation mode, for curvatures and scores.

        Its `params` are those of the online network; its `frozen` is `{"batch_stats": …}`, and with a target network of
        its own parameters also `{"target": {"params": …, "batch_stats": …}}`.

        Args:
            dtype: The type that layers compute in; None takes that of the parameters.
        """
        views = PRETRAINING[self.views]
        if self.loss.compares_with_target:
            return Objective(self.network("predict", dtype), views, self.loss, self.network("project", dtype))
        return Objective(self.network("project", dtype), views, self.loss)

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        return schedule(self.optimiser, self.epochs, steps_per_epoch, self.batch_size)


_SIMCLR = Pretrain(
    "simclr",
    SimCLR(0.2),
    Architecture(hidden=2048, output=256, normalisation="none", stem="solo_learn"),
    Lars(0.4, weight_decay=1e-4, scale_by_batch=True),
    precision="bfloat16",
)
_BYOL = Pretrain(
    "byol",
    BYOL(),
    Architecture(hidden=4096, output=256, predictor_hidden=4096, stem="solo_learn"),
    Lars(1.0, weight_decay=1e-5, scale_by_batch=True),
    precision="bfloat16",
)
_BARLOW_TWINS = Pretrain(
    "barlow_twins",
    BarlowTwins(off_diagonal=0.0051, scale=0.1),
    Architecture(hidden=2048, output=2048, hidden_layers=2, stem="solo_learn"),
    Lars(0.3, weight_decay=1e-4, scale_by_batch=True),
    precision="bfloat16",
)
_REMOVAL = {"epochs": 250, "batch_size": 512}
_IMAGENET_MEAN, _IMAGENET_STD = STATISTICS["imagenet"]

RECIPES: dict[str, Pretrain] = {
    "solo_learn_simclr": _SIMCLR,
    "solo_learn_byol": _BYOL,
    "solo_learn_barlow_twins": _BARLOW_TWINS,
    "table2_simclr": dataclasses.replace(_SIMCLR, views="table1"),
    "table2_byol": dataclasses.replace(_BYOL, views="table1"),
    "table2_barlow_twins": dataclasses.replace(_BARLOW_TWINS, views="table1"),
    "table3_simclr": dataclasses.replace(_SIMCLR, views="table1", optimiser=Lars(0.4, weight_decay=1e-4), **_REMOVAL),
    "table3_byol": dataclasses.replace(
        _BYOL,
        views="table1",
        architecture=Architecture(hidden=2048, output=256, predictor_hidden=2048, stem="solo_learn"),
        optimiser=Lars(0.35, weight_decay=1e-5),
        **_REMOVAL,
    ),
    "table3_barlow_twins": dataclasses.replace(
        _BARLOW_TWINS,
        views="table1",
        architecture=Architecture(hidden=2048, output=512, hidden_layers=2, stem="solo_learn"),
        optimiser=Lars(0.35, weight_decay=1e-4),
        **_REMOVAL,
    ),
    "fairface_byol": dataclasses.replace(
        _BYOL,
        views="table1",
        architecture=Architecture(
            hidden=4096, output=256, predictor_hidden=4096, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
        ),
        epochs=200,
    ),
    "short_simclr": Pretrain(
        "simclr",
        SimCLR(0.2),
        Architecture(width=16, hidden=512, output=128),
        Lars(0.4, warmup_epochs=1),
        epochs=5,
        batch_size=64,
    ),
    "supervised": Pretrain(
        "supervised", Supervised(), Architecture(output=10), Sgd(0.1, warmup_epochs=5), epochs=200, batch_size=128
    ),
    "solo_learn_simsiam": Pretrain(
        "simsiam",
        SimSiam(),
        Architecture(hidden=2048, output=2048, hidden_layers=2, predictor_hidden=512, stem="solo_learn"),
        Sgd(0.5, weight_decay=1e-5, warmup_epochs=10, warmup_start=0.003, scale_by_batch=True),
        precision="bfloat16",
    ),
    "solo_learn_vicreg": Pretrain(
        "vicreg",
        VICReg(),
        Architecture(hidden=2048, output=2048, hidden_layers=2, stem="solo_learn"),
        Lars(0.3, weight_decay=1e-4, scale_by_batch=True),
        precision="bfloat16",
    ),
}
"""The recipes by name.

`solo_learn_*` are the CIFAR checkpoints of solo-learn, as its scripts make them (scripts/pretrain/cifar). The predictor of
`solo_learn_simsiam` follows the schedule of the learning rate, which solo-learn holds constant for it, and weight decay
spares biases and norm parameters. `table2_*` are the checkpoints that arXiv 2412.17170 scores: the same settings, with the
views of its Table 1. `table3_*` are its removal runs, with seeds 0, 42 and 123. `fairface_byol` is its run on faces, for
inputs of 64×64 pixels (`--input.height 64 --input.width 64`). `short_simclr` is a narrow network for a first look, trained
for far too few epochs.

docs/pretrain.md lists what the tables of the paper leave open, and what these recipes decide: weight decay, stem, the kind
of 16-bit precision, whether rates scale with the batch.
"""


def recipes() -> dict[str, Pretrain]:
    """Return all recipes by name.

    They are RECIPES, and one for each training loss that none of them uses. That one has the loss with its default
    settings, and the views `simclr`, or `supervised` if the loss compares one view.
    """
    taken = {type(recipe.loss) for recipe in RECIPES.values()}
    others = {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): Pretrain(
            "supervised" if kind.views == 1 else "simclr", kind()
        )
        for kind in TRAINING_LOSSES
        if kind not in taken
    }
    return RECIPES | others


def tiny(loss: Loss) -> Pretrain:
    """Return settings of a run of seconds on images of 8×8 pixels.

    It uses every part of training, and learns nothing well.
    """
    named: dict[type[Loss], str] = {
        BYOL: "byol",
        BarlowTwins: "barlow_twins",
        SimSiam: "simsiam",
        VICReg: "vicreg",
        Supervised: "supervised",
    }
    views = named.get(type(loss), "simclr")
    return Pretrain(
        views,
        loss,
        Architecture(width=4, hidden=16, output=10, predictor_hidden=16),
        Lars(0.3, warmup_epochs=0),
        epochs=2,
        batch_size=32,
    )
