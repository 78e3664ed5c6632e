"""Define ConvNeXt (arXiv 2201.03545)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.nets.vit import layer_norm, small


class ConvNeXtBlock(nn.Module):
    """A residual block `x + γ ⊙ W₂ gelu(W₁ norm(depthwise 7×7(x)))`.

    Attributes:
        scaled: Whether the block has the factor γ.
        dtype: Type to compute in; parameters are float32.
    """

    scaled: bool = True
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Apply the block."""
        width = x.shape[-1]
        y = nn.Conv(
            width, (7, 7), padding=3, feature_group_count=width, kernel_init=small, dtype=self.dtype, name="dwconv"
        )(x)
        y = layer_norm(1e-6, self.dtype, "norm")(y)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, kernel_init=small, name="pwconv1")(y), approximate=False)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=small, name="pwconv2")(y)
        if self.scaled:
            gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,))
            y = y * gamma.astype(y.dtype).reshape(1, 1, 1, -1)
        return x + y


class ConvNeXt(nn.Module):
    """A ConvNeXt from images to representations.

    A 4×4 stem, stages of blocks with 2×2 reductions between them, and the normalised mean over positions.

    Attributes:
        widths: Number of channels of each stage.
        blocks: Number of blocks of each stage.
        scaled: Whether residual branches are scaled channel by channel.
        dtype: Type to compute in (`None`: that of the images and parameters); parameters are float32.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.convnext import ConvNeXt
        >>> network, images = ConvNeXt(widths=(2, 4), blocks=(1, 1)), jnp.zeros((3, 8, 8, 1))
        >>> jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x)[0], images).shape
        (3, 4)
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    scaled: bool = True
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch features"]:
        """Represent standardised images; training and evaluation are the same."""
        del train
        x = images
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            side = 2 if stage else 4
            reduce = nn.Conv(
                width,
                (side, side),
                (side, side),
                padding="VALID",
                kernel_init=small,
                dtype=self.dtype,
                name=f"reduce{stage}_conv",
            )
            norm = layer_norm(1e-6, self.dtype, f"reduce{stage}_norm")
            x = reduce(norm(x)) if stage else norm(reduce(x))
            for number in range(count):
                x = ConvNeXtBlock(self.scaled, self.dtype, name=f"stage{stage}_{number}")(x)
        x = layer_norm(1e-6, self.dtype, "norm")(jnp.mean(x, axis=(1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
