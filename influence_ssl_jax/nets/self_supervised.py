"""A backbone with the heads of self-supervised pretraining, every depth of it a method."""

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float


class Outputs(NamedTuple):
    """What one pass makes of a batch.

    Attributes:
        representation: The backbone's output, which downstream tasks use.
        projection: The projector's output, which an SSL loss compares (logits, where the projector is a classifier).
        prediction: The predictor's output, where there is one (BYOL).
    """

    representation: Float[Array, "batch features"]
    projection: Float[Array, "batch output"]
    prediction: Float[Array, "batch output"] | None


class SelfSupervised(nn.Module):
    """`predictor(projector(backbone(images)))`.

    Each method reads only the parameters of the submodules it passes through: `{"backbone": …}` alone will do for
    `Network(module, method="encode")`, and is then all that is differentiated.

    Attributes:
        backbone: Images → representations.
        projector: Representations → projections.
        predictor: Projections → predictions, for losses that compare with a target network.
    """

    backbone: nn.Module
    projector: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, images: Float[Array, "batch height width channels"], train: bool) -> Outputs:
        """Everything that training reads."""
        representation = self.backbone(images, train)
        projection = self.projector(representation, train)
        prediction = None if self.predictor is None else self.predictor(projection, train)
        return Outputs(representation, projection, prediction)

    def encode(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch features"]:
        """The representation."""
        return self.backbone(images, train)

    def project(self, images: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch output"]:
        """The projection."""
        return self.projector(self.backbone(images, train), train)

    def predict(self, images: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch output"]:
        """The prediction.

        Raises:
            ValueError: There is no predictor.
        """
        if self.predictor is None:
            raise ValueError("This network has no predictor, got method 'predict'; use 'project' or 'encode'.")
        return self.predictor(self.project(images, train), train)
