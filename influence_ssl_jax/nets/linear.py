"""Define the linear network of the theory."""

import flax.linen as nn
from jaxtyping import Array, Float


class Linear(nn.Module):
    """A linear network `z = W x` of the flattened image `x`, without bias.

    Its curvature has a closed form.

    Attributes:
        features: Width of the embedding.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> variables = {"params": {"dense": {"kernel": jnp.asarray([[1.0], [10.0]])}}}
        >>> float(Linear(1).apply(variables, jnp.asarray([[[[2.0], [3.0]]]]))[0, 0])  # 1·2 + 10·3
        32.0
    """

    features: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch features"]:
        """Embed images; training and evaluation are the same."""
        del train
        return nn.Dense(self.features, use_bias=False, name="dense")(images.reshape(images.shape[0], -1))
