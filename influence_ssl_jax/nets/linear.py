"""The linear network of the theory."""

import flax.linen as nn
from jaxtyping import Array, Float


class Linear(nn.Module):
    """`z = W x` for the flattened image `x`, without bias: the network whose curvature has a closed form.

    Attributes:
        features: Width of the embedding.
    """

    features: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch features"]:
        """Embed images; training and evaluation are the same."""
        del train
        return nn.Dense(self.features, use_bias=False, name="dense")(images.reshape(images.shape[0], -1))
