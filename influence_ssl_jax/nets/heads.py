"""Projector, predictor and classifier heads, and networks made of an encoder and heads."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.nets.resnet import batch_norm


class Projector(nn.Module):
    """(Dense–BatchNorm–ReLU) × `hidden_layers`, then Dense: the head whose output an SSL loss compares.

    One hidden layer is SimCLR's (arXiv 2002.05709) and BYOL's (arXiv 2006.07733), two are Barlow Twins'
    (arXiv 2103.03230).

    Attributes:
        hidden: Width of the hidden layers.
        output: Width of the output.
        hidden_layers: Number of hidden layers.
        normalisation: Of the hidden layers; solo-learn's SimCLR projector has none.
        dtype: The dtype to compute in (`None`: that of inputs and parameters); parameters are float32.
        hidden_bias: Whether hidden layers have a bias; those of Barlow Twins' own checkpoints have none.
        output_bias: Whether the last layer has a bias; that of VICReg has none.
    """

    hidden: int
    output: int
    hidden_layers: int = 1
    normalisation: Literal["batch", "none"] = "batch"
    dtype: jax.typing.DTypeLike | None = None
    hidden_bias: bool = True
    output_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch output"]:
        """Project representations; `train` uses the batch's own statistics and updates `batch_stats`."""
        for layer in range(self.hidden_layers):
            x = nn.Dense(self.hidden, self.hidden_bias, self.dtype, name=f"dense{layer}")(x)
            if self.normalisation == "batch":
                x = batch_norm(train, self.dtype, f"bn{layer}")(x)
            x = nn.relu(x)
        x = nn.Dense(self.output, self.output_bias, self.dtype, name="output")(x)
        # A loss takes differences of nearly equal embeddings: at least float32.
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Predictor(nn.Module):
    """BYOL's predictor (arXiv 2006.07733): a one-hidden-layer projector from projections to projections.

    Attributes:
        hidden: Width of the hidden layer.
        dtype: The dtype to compute in (`None`: that of inputs and parameters); parameters are float32.
    """

    hidden: int
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch features"]:
        """Predict the other view's projection; `train` uses the batch's own statistics and updates `batch_stats`."""
        head = Projector(self.hidden, x.shape[-1], dtype=self.dtype, name="head")
        return head(x, train)


class Classifier(nn.Module):
    """Logits `W z + b`.

    Attributes:
        classes: Number of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch classes"]:
        """Classify representations; training and evaluation are the same."""
        del train
        return nn.Dense(self.classes, name="output")(x)


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
