"""The settings that say which network a checkpoint holds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from influence_ssl_jax.nets.heads import Classifier, Predictor, Projector
from influence_ssl_jax.nets.resnet import ResNet18
from influence_ssl_jax.nets.self_supervised import SelfSupervised


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A ResNet-18 with its heads.

    Attributes:
        width: Channels of the backbone's first stage; 64 is ResNet-18, small widths train on a laptop.
        projector_hidden: Width of the projector's hidden layers.
        projector_output: Width of the projection.
        projector_layers: Hidden layers of the projector: 1 for SimCLR and BYOL, 2 for Barlow Twins.
        projector_normalisation: Of the projector's hidden layers; solo-learn's SimCLR has none.
        predictor_hidden: Width of the predictor's hidden layer; `None` for losses without predictor.
        classes: Where given, a linear classifier stands in the projector's place: the supervised baseline.
        precision: `full` computes in the dtype of the parameters, `bfloat16` in half of it with float32 parameters.
    """

    width: int = 64
    projector_hidden: int = 2048
    projector_output: int = 256
    projector_layers: int = 1
    projector_normalisation: Literal["batch", "none"] = "batch"
    predictor_hidden: int | None = None
    classes: int | None = None
    precision: Literal["full", "bfloat16"] = "full"

    def __post_init__(self) -> None:
        """Refuse sizes that are no sizes."""
        for field in ("width", "projector_hidden", "projector_output", "predictor_hidden", "classes"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}.")
        if self.projector_layers < 0:
            raise ValueError(f"projector_layers must be at least 0, got {self.projector_layers}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """The inverse of `dataclasses.asdict`: what a checkpoint recorded.

        Raises:
            ValueError: A name is not a setting.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown architecture settings {unknown}; known are {known}.")
        return cls(**values)

    def build(self) -> SelfSupervised:
        """The linen module."""
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else None
        projector = Projector(
            self.projector_hidden, self.projector_output, self.projector_layers, self.projector_normalisation, dtype
        )
        return SelfSupervised(
            backbone=ResNet18(self.width, dtype),
            projector=projector if self.classes is None else Classifier(self.classes),
            predictor=None if self.predictor_hidden is None else Predictor(self.predictor_hidden, dtype),
        )
