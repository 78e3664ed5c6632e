"""What stands on a backbone: projector, predictor, linear classifier."""

from typing import Literal

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
    """

    hidden: int
    output: int
    hidden_layers: int = 1
    normalisation: Literal["batch", "none"] = "batch"
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch output"]:
        """Project representations; `train` uses the batch's own statistics and updates `batch_stats`."""
        for layer in range(self.hidden_layers):
            x = nn.Dense(self.hidden, dtype=self.dtype, name=f"dense{layer}")(x)
            if self.normalisation == "batch":
                x = batch_norm(train, self.dtype, f"bn{layer}")(x)
            x = nn.relu(x)
        x = nn.Dense(self.output, dtype=self.dtype, name="output")(x)
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
