"""Define residual networks of basic and bottleneck blocks (arXiv 1512.03385)."""

import functools
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The usual initialisation of ResNets: Kaiming's, with the fan-out, as in torch.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Stem: TypeAlias = Literal["cifar", "solo_learn", "imagenet"]
"""The layers before the first stage.

`cifar`: 3×3, stride 1, padding 1 (arXiv 2002.05709 B.9) · `solo_learn`: the same with padding 2, so that a 32×32 image
becomes 34×34 · `imagenet`: 7×7, stride 2, padding 3, then max-pooling 3×3, stride 2, padding 1. The first two have
kernels of the same shape and give different embeddings.
"""

MOMENTUM = 0.9
"""The share of BatchNorm's running statistics that one batch of training keeps."""


def batch_norm(train: bool, dtype: jax.typing.DTypeLike | None, name: str, affine: bool = True) -> nn.BatchNorm:
    """Return BatchNorm as torch defines it.

    It has ε = 1e-5 and momentum 0.9 of the running statistics, and a scale and a shift if it is affine.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=1e-5,
        dtype=dtype,
        use_bias=affine,
        use_scale=affine,
        name=name,
    )


class BasicBlock(nn.Module):
    """A residual block `relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`.

    The shortcut is a strided 1×1 convolution with BatchNorm if shapes change, and the identity otherwise.

    Attributes:
        channels: Number of output channels.
        stride: Stride of the first convolution and of the shortcut.
        dtype: Type to compute in; parameters are float32.
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
    """A residual block `relu(bn(1×1(relu(bn(3×3(relu(bn(1×1(x)))))))) + shortcut(x))`.

    The stride is in the 3×3 convolution, as in torchvision.

    Attributes:
        channels: Channels of the 3×3 convolution; the output has four times as many.
        stride: Stride of the 3×3 convolution and of the shortcut.
        dtype: Type to compute in; parameters are float32.
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
    """A residual network from images to representations.

    A stem, stages of residual blocks, and the mean over positions.

    | network | block | blocks | representation at width 64 |
    |---|---|---|---|
    | ResNet-18, -34 | basic | (2, 2, 2, 2), (3, 4, 6, 3) | 512 |
    | ResNet-50, -101 | bottleneck | (3, 4, 6, 3), (3, 4, 23, 3) | 2048 |

    Attributes:
        width: Channels of the 3×3 convolutions of the first stage; they double from stage to stage.
        dtype: Type to compute in (`None`: that of the images and parameters); parameters are float32.
        blocks: Number of blocks of each stage.
        block: `basic` (two 3×3 convolutions) or `bottleneck` (1×1, 3×3, 1×1).
        stem: The layers before the first stage.

    Examples:
        The width doubles at the second stage, and the mean over positions leaves one vector for each image.

        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.resnet import ResNet
        >>> network, images = ResNet(width=2, blocks=(1, 1)), jnp.zeros((3, 8, 8, 1))
        >>> jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, False)[0], images).shape
        (3, 4)
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
        """Represent standardised images.

        If `train` is true, BatchNorm uses the statistics of the batch and updates `batch_stats`.
        """
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
        # The mean is taken in at least float32, which heads and losses start from.
        return jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))


def ResNet18(width: int = 64, dtype: jax.typing.DTypeLike | None = None, stem: Stem = "cifar") -> ResNet:
    """Return the ResNet-18 for small images.

    It has 11,168,832 parameters at width 64 on RGB images.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax import trees
        >>> from influence_ssl_jax.nets.resnet import ResNet18
        >>> network, images = ResNet18(), jnp.zeros((1, 32, 32, 3))
        >>> trees.size(jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)["params"])
        11168832
    """
    return ResNet(width, dtype, stem=stem)
