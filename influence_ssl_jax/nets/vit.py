"""Define vision transformers as DINO, DINOv2, DINOv3, MAE and timm build them.

Reference: arXiv 2010.11929.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.errors import StructureError

small = nn.initializers.truncated_normal(0.02)


class LayerScale(nn.Module):
    """A layer `γ ⊙ x` with one factor for each channel (arXiv 2103.17239).

    Attributes:
        initial: γ of an untrained network.
    """

    initial: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Scale the channels."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype).reshape(1, 1, -1)


class Attention(nn.Module):
    """Multi-head self-attention with one layer for queries, keys and values.

    They are fused in this order.

    Attributes:
        heads: Number of heads; it divides the width.
        qkv_bias: `full`; `none`; or `no_key`, a bias of queries and values only, as DINOv3 masks it.
        dtype: Type to compute in; parameters are float32.
    """

    heads: int
    qkv_bias: Literal["full", "no_key", "none"] = "full"
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], rotation: tuple[Array, Array] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Mix tokens by attention.

        Args:
            x: The tokens.
            rotation: Cosine and sine [patches, width / heads] for the last tokens, which are the patches.
        """
        batch, tokens, width = x.shape
        fused = nn.Dense(3 * width, self.qkv_bias == "full", self.dtype, kernel_init=small, name="qkv")(x)
        if self.qkv_bias == "no_key":
            query, value = (self.param(name, nn.initializers.zeros, (width,)) for name in ("query_bias", "value_bias"))
            bias = jnp.concatenate([query, jnp.zeros_like(query), value])
            fused = fused + bias.astype(fused.dtype).reshape(1, 1, -1)
        split = fused.reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (split[:, :, part] for part in range(3))
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // self.heads)
        # Weights are normalised in at least float32.
        weights = nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, width)
        return nn.Dense(width, dtype=self.dtype, kernel_init=small, name="proj")(mixed)


class FeedForward(nn.Module):
    """A layer `W₂ gelu(W₁ x)`, or gated: `W₃ (silu(W₁ x) ⊙ W₂ x)` (arXiv 2002.05202).

    Attributes:
        hidden: Width between the layers.
        kind: `mlp` or `swiglu`.
        dtype: Type to compute in; parameters are float32.
    """

    hidden: int
    kind: Literal["mlp", "swiglu"] = "mlp"
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Transform each token by itself."""

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=small, name=name)

        if self.kind == "swiglu":
            gated = nn.silu(dense(self.hidden, "w1")(x)) * dense(self.hidden, "w2")(x)
            return dense(x.shape[-1], "w3")(gated)
        return dense(x.shape[-1], "fc2")(nn.gelu(dense(self.hidden, "fc1")(x), approximate=False))


class Block(nn.Module):
    """A block `x + γ₁ attention(norm(x))`, then `x + γ₂ feed-forward(norm(x))`.

    Attributes:
        heads: Number of attention heads.
        hidden: Width inside the feed-forward layer.
        feed_forward: Kind of the feed-forward layer.
        qkv_bias: Bias of queries, keys and values.
        layer_scale: Whether the block has the factors γ₁ and γ₂.
        epsilon: ε of the normalisation.
        dtype: Type to compute in; parameters are float32.
    """

    heads: int
    hidden: int
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    qkv_bias: Literal["full", "no_key", "none"] = "full"
    layer_scale: bool = False
    epsilon: float = 1e-6
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], rotation: tuple[Array, Array] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Apply the block."""
        y = layer_norm(self.epsilon, self.dtype, "norm1")(x)
        y = Attention(self.heads, self.qkv_bias, self.dtype, name="attn")(y, rotation)
        x = x + (LayerScale(name="ls1")(y) if self.layer_scale else y)
        y = layer_norm(self.epsilon, self.dtype, "norm2")(x)
        y = FeedForward(self.hidden, self.feed_forward, self.dtype, name="mlp")(y)
        return x + (LayerScale(name="ls2")(y) if self.layer_scale else y)


class VisionTransformer(nn.Module):
    """A vision transformer from images to representations.

    Patches, positions, blocks, and the normalised class token or mean of the patches. If an image has another size than
    the stored positions, these are interpolated as the authors of the network do it.

    Attributes:
        patch: Side of a patch in pixels.
        width: Number of channels of a token.
        heads: Number of attention heads.
        depth: Number of blocks.
        hidden: Width inside the feed-forward layers.
        grid: Side of the square grid of patches with stored positions; 0 if none are stored.
        positions: `with_class`: the class token has a position too · `patches`: only patches have positions · `rotary`:
            queries and keys are rotated instead, by `periods` (arXiv 2104.09864).
        registers: Number of tokens beside the class token (arXiv 2309.16588); they have no position.
        feed_forward: `mlp` or `swiglu`.
        qkv_bias: `full`, `none`, or `no_key` (DINOv3).
        layer_scale: Whether residual branches are scaled.
        epsilon: ε of the normalisation.
        output: `class`: the normalised class token · `mean`: the normalised mean of the patches (MAE fine-tuned, timm).
        periods: Periods of the rotation, one for each quarter of the channels of a head.
        offset: Number added to the number of patches for the scale of interpolation: 0.1 in DINO and in DINOv2 without
            registers.
        antialias: Whether interpolation smooths if it shrinks.
        dtype: Type to compute in (`None`: that of the images and parameters); parameters are float32.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.vit import VisionTransformer
        >>> network = VisionTransformer(patch=4, width=6, heads=2, depth=1, hidden=8, grid=2)
        >>> images = jnp.zeros((3, 8, 8, 1))
        >>> output, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), images)
        >>> output.shape, variables["params"]["pos_embed"].shape  # 4 patches and the class token have positions
        ((3, 6), (1, 5, 6))
    """

    patch: int
    width: int
    heads: int
    depth: int
    hidden: int
    grid: int
    positions: Literal["with_class", "patches", "rotary"] = "with_class"
    registers: int = 0
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    qkv_bias: Literal["full", "no_key", "none"] = "full"
    layer_scale: bool = False
    epsilon: float = 1e-6
    output: Literal["class", "mean"] = "class"
    periods: tuple[float, ...] = ()
    offset: float = 0.0
    antialias: bool = False
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch features"]:
        """Represent standardised images; training and evaluation are the same.

        Raises:
            StructureError: If patches do not fill the images, or the number of heads does not divide the width.
        """
        del train
        self._refuse(images.shape)
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, side, padding="VALID", kernel_init=small, dtype=self.dtype, name="patch_embed")(
            images
        )
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)
        first = self.param("cls_token", small, (1, 1, width))
        rotation = None
        if self.positions == "rotary":
            rotation = compute_rotation(rows, columns, self.periods, x.dtype)
        else:
            own = int(self.positions == "with_class")
            stored = self.param("pos_embed", small, (1, own + self.grid**2, width))
            x = x + self._positions(stored[:, own:], rows, columns).astype(x.dtype)
            first = first + stored[:, :own] if own else first
        tokens = [first]
        if self.registers:
            tokens.append(self.param("registers", small, (1, self.registers, width)))
        prefix = jnp.concatenate(tokens, axis=1).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape[1:])), x], axis=1)
        for number in range(self.depth):
            block = Block(
                self.heads, self.hidden, self.feed_forward, self.qkv_bias, self.layer_scale, self.epsilon, self.dtype
            )
            x = block.clone(name=f"blocks_{number}", parent=self)(x, rotation)
        x = x[:, 0] if self.output == "class" else jnp.mean(x[:, prefix.shape[1] :], axis=1)
        x = layer_norm(self.epsilon, self.dtype, "norm")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _positions(
        self, stored: Float[Array, "1 stored width"], rows: int, columns: int
    ) -> Float[Array, "1 patches width"]:
        """Interpolate stored positions to the patches of the images."""
        if (rows, columns) == (self.grid, self.grid):
            return stored
        vertical, horizontal = (
            jnp.asarray(interpolation_matrix(self.grid, size, self.offset, self.antialias), stored.dtype)
            for size in (rows, columns)
        )
        square = stored.reshape(self.grid, self.grid, -1)
        return jnp.einsum("ri,cj,ijw->rcw", vertical, horizontal, square).reshape(1, rows * columns, -1)

    def _refuse(self, shape: tuple[int, ...]) -> None:
        """Refuse images that patches do not fill, and wrong numbers of heads.

        The number of heads must divide the width.
        """
        if shape[1] % self.patch or shape[2] % self.patch:
            raise StructureError(
                f"Images of {shape[1]}×{shape[2]} pixels cannot be cut into patches of {self.patch}; choose a size that "
                f"{self.patch} divides."
            )
        if self.heads < 1 or self.width % self.heads:
            raise StructureError(
                f"{self.heads} heads cannot share {self.width} channels; choose heads that divide them."
            )


def layer_norm(epsilon: float, dtype: jax.typing.DTypeLike | None, name: str) -> nn.LayerNorm:
    """Return LayerNorm as torch computes it, from the centred values' variance."""
    return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)


def compute_rotation(
    rows: int, columns: int, periods: tuple[float, ...], dtype: jax.typing.DTypeLike
) -> tuple[Float[Array, "patches head"], Float[Array, "patches head"]]:
    """Compute cosine and sine of the angles `2π · coordinate / period`.

    The angles of rows come first, then those of columns, and all of them twice. Coordinates are the centres of the
    patches, scaled to [−1, 1] on each axis (DINOv3).
    """
    axes = (2 * (np.arange(size) + 0.5) / size - 1 for size in (rows, columns))
    coordinates = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(rows * columns, 2, 1)
    angles = (2 * np.pi * coordinates / np.asarray(periods).reshape(1, 1, -1)).reshape(rows * columns, -1)
    angles = np.tile(angles, (1, 2))
    return jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)


def rotate(
    tokens: Float[Array, "batch tokens heads head"],
    cosine: Float[Array, "patches head"],
    sine: Float[Array, "patches head"],
) -> Float[Array, "batch tokens heads head"]:
    """Rotate the last tokens, which are the patches.

    `x cos + (−x₂, x₁) sin`, where x₁ and x₂ are the halves of the channels of a head.
    """
    prefix, patches = jnp.split(tokens, [tokens.shape[1] - cosine.shape[0]], axis=1)
    first, second = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    cosine, sine = cosine[None, :, None, :], sine[None, :, None, :]
    return jnp.concatenate([prefix, patches * cosine + turned * sine], axis=1)


def interpolation_matrix(stored: int, size: int, offset: float, antialias: bool) -> Float[np.ndarray, "size stored"]:
    """Return the matrix that resamples values as torch's bicubic `interpolate` does.

    Without antialiasing the cubic has a = −0.75. With antialiasing it has a = −0.5, the kernel widens if it shrinks,
    and its weights have sum 1. The scale is `(size + offset) / stored` in both cases.

    Args:
        stored: Number of stored values.
        size: Number of values of the result.
        offset: Number added to `size` for the scale.
        antialias: Whether the kernel widens if it shrinks.
    """
    scale = stored / (size + offset)
    centres = (np.arange(size) + 0.5) * scale
    matrix = np.zeros((size, stored))
    if not antialias:
        for row, centre in enumerate(centres - 0.5):
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[row, min(max(tap, 0), stored - 1)] += _cubic(centre - tap, -0.75)
        return matrix
    wide = max(scale, 1.0)
    for row, centre in enumerate(centres):
        taps = range(max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), stored))
        weights = np.array([_cubic((tap + 0.5 - centre) / wide, -0.5) for tap in taps])
        matrix[row, taps.start : taps.stop] = weights / weights.sum()
    return matrix


def _cubic(distance: float, a: float) -> float:
    """Return Keys' cubic convolution kernel with the parameter `a`."""
    x = abs(distance)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0
