"""Residual networks of basic and bottleneck blocks, for small and for large images (arXiv 1512.03385)."""

import functools
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# torch's fan-out Kaiming initialisation of convolutions, which ResNets are trained from everywhere.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Stem: TypeAlias = Literal["cifar", "solo_learn", "imagenet"]
"""`cifar`: 3×3, stride 1, padding 1 (arXiv 2002.05709 B.9) · `solo_learn`: the same with padding 2, so that a 32×32 image
becomes 34×34 · `imagenet`: 7×7, stride 2, padding 3, then max-pooling 3×3, stride 2, padding 1. The first two have kernels
of the same shape and give different embeddings."""

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


class Bottleneck(nn.Module):
    """`relu(bn(1×1(relu(bn(3×3(relu(bn(1×1(x))))))))) + shortcut(x))`, the stride in the 3×3 convolution, as torchvision.

    Attributes:
        channels: Channels of the 3×3 convolution; the output has four times as many.
        stride: Stride of the 3×3 convolution and of the shortcut.
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
        convolution = functools.partial(nn.Conv, use_bias=False, kernel_init=kaiming, dtype=self.dtype)
        norm = functools.partial(batch_norm, train, self.dtype)
        y = nn.relu(norm("bn1")(convolution(self.channels, (1, 1), padding=0, name="conv1")(x)))
        y = nn.relu(norm("bn2")(convolution(self.channels, (3, 3), self.stride, padding=1, name="conv2")(y)))
        y = norm("bn3")(convolution(4 * self.channels, (1, 1), padding=0, name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != 4 * self.channels:
            x = convolution(4 * self.channels, (1, 1), self.stride, padding=0, name="shortcut_conv")(x)
            x = norm("shortcut_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images → representation: a stem, stages of residual blocks, the mean over positions.

    | network | block | blocks | representation at width 64 |
    |---|---|---|---|
    | ResNet-18, -34 | basic | (2, 2, 2, 2), (3, 4, 6, 3) | 512 |
    | ResNet-50, -101 | bottleneck | (3, 4, 6, 3), (3, 4, 23, 3) | 2048 |

    Attributes:
        width: Channels of the first stage's 3×3 convolutions; they double from stage to stage.
        dtype: The dtype to compute in (`None`: that of the images and parameters); parameters are float32.
        blocks: Number of blocks in each stage.
        block: `basic` (two 3×3 convolutions) or `bottleneck` (1×1, 3×3, 1×1).
        stem: What stands before the first stage.
    """

    width: int = 64
    dtype: jax.typing.DTypeLike | None = None
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Stem = "cifar"

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch features"]:
        """Represent standardised images; `train` uses the batch's own statistics and updates `batch_stats`."""
        window, stride, padding = {"cifar": (3, 1, 1), "solo_learn": (3, 1, 2), "imagenet": (7, 2, 3)}[self.stem]
        convolution = functools.partial(nn.Conv, use_bias=False, kernel_init=kaiming, dtype=self.dtype)
        x = convolution(self.width, (window, window), stride, padding=padding, name="conv1")(images)
        x = nn.relu(batch_norm(train, self.dtype, "bn1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[self.block]
        for stage, count in enumerate(self.blocks):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                x = block(self.width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{number}")(x, train)
        # The mean is taken in full precision: whatever reads the representation starts from float32.
        return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))


def ResNet18(width: int = 64, dtype: jax.typing.DTypeLike | None = None) -> ResNet:
    """Return the ResNet-18 for small images: at width 64 it has 11,168,832 parameters on RGB images."""
    return ResNet(width, dtype)
