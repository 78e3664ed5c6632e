"""The choices that a score leaves open, in the words of the command line."""

import dataclasses
import functools
import operator
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS
from influence_ssl_jax.augment.views import Views
from influence_ssl_jax.ihvp import BACKENDS, Backend
from influence_ssl_jax.losses import MEASUREMENTS, Measurement
from influence_ssl_jax.problem import Curvature

if TYPE_CHECKING:
    AnyBackend: TypeAlias = Backend
    AnyMeasurement: TypeAlias = Measurement
else:  # one sub-command for each entry of the one list
    _named = (Annotated[each, tyro.conf.subcommand(each.__name__.lower())] for each in BACKENDS)
    AnyBackend = functools.reduce(operator.or_, _named)
    AnyMeasurement = functools.reduce(operator.or_, MEASUREMENTS)
Output: TypeAlias = Literal["encoder", "projector", "predictor"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A named perturbation in place of noise.

    Attributes:
        name: crop, flip_blur, flip_jitter_blur, flip_jitter_gray, flip_gray_blur, or noise of σ = 0.2.
    """

    name: str = "crop"

    def __post_init__(self) -> None:
        """Refuse a name that is not known."""
        if self.name not in PERTURBATIONS:
            raise ValueError(f"There is no perturbation {self.name!r}; there are {', '.join(PERTURBATIONS)}.")


AnyPerturbation: TypeAlias = GaussianNoise | Augmentation


def views(perturbation: AnyPerturbation) -> Views:
    """The pair of clean and perturbed image."""
    return PERTURBATIONS[perturbation.name] if isinstance(perturbation, Augmentation) else perturbation


@dataclasses.dataclass(frozen=True)
class CurvatureSet:
    """Which matrix is inverted.

    Attributes:
        objective: The curvature of the measurement itself, or of the loss that the network was pretrained with, heads
            included, whichever output is scored.
        kind: `ggn` (positive semi-definite by construction), `fisher`, `empirical_fisher`, or the exact `hessian`,
            which is indefinite away from a minimum and then refused.
        examples: Random images that the matrix is averaged over.
        batch_size: Images at a time; a pretraining loss couples those of one batch. SimCLR's and Barlow Twins' `ggn` is
            seen by drawn gradients of whole batches: give a backend that draws them more `samples` then, such as 16.
        samples: Draws per batch of the sampled `fisher`.
    """

    objective: Literal["measurement", "pretraining"] = "measurement"
    kind: Curvature = "ggn"
    examples: int = 1024
    batch_size: int = 64
    samples: int = 1


@dataclasses.dataclass(frozen=True)
class Parts:
    """When finished scores are written: what a kill can cost.

    Attributes:
        rows: After so many images,
        seconds: or after so many seconds, whichever comes first; whole batches.
    """

    rows: int = 2048
    seconds: float = 20.0
