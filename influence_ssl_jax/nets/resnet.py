"""ResNet-18 for small images (arXiv 1512.03385; the CIFAR stem of SimCLR, arXiv 2002.05709 B.9)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# torch's fan-out Kaiming initialisation of convolutions, which ResNets are trained from everywhere.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

MOMENTUM = 0.9
"""What a batch in training leaves of BatchNorm's running statistics."""


def batch_norm(train: bool, dtype: jax.typing.DTypeLike | None, name: str) -> nn.BatchNorm:
    """BatchNorm as torch has it: ε = 1e-5, a tenth of the batch's statistics enters the running ones."""
    return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=1e-5, dtype=dtype, name=name)


class BasicBlock(nn.Module):
    """`relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`, the shortcut a strided 1×1 convolution where shapes change.

    Attributes:
        channels: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        dtype: The dtype to compute in; parameters are float32.
    """

    channels: int
    stride: int
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """Apply the block."""
        convolution = functools.partial(nn.Conv, self.channels, use_bias=False, kernel_init=kaiming, dtype=self.dtype)
        norm = functools.partial(batch_norm, train, self.dtype)
        y = convolution((3, 3), self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm("bn1")(y))
        y = convolution((3, 3), padding=1, name="conv2")(y)
        y = norm("bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = convolution((1, 1), self.stride, padding=0, name="shortcut_conv")(x)
            x = norm("shortcut_bn")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """Images → representation of width 8·`width`: 3×3 stem of stride 1, no max-pool, 4 stages of 2 blocks, mean.

    At width 64 it has 11,168,832 parameters on RGB images.

    Attributes:
        width: Channels of the first stage; they double from stage to stage.
        dtype: The dtype to compute in (`None`: that of the images and parameters); parameters are float32.
    """

    width: int = 64
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch features"]:
        """Represent standardised images; `train` uses the batch's own statistics and updates `batch_stats`."""
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, kernel_init=kaiming, dtype=self.dtype, name="conv1")(
            images
        )
        x = nn.relu(batch_norm(train, self.dtype, "bn1")(x))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{block}")(x, train)
        # The mean is taken in full precision: whatever reads the representation starts from float32.
        return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
