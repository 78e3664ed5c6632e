"""The bilinear primitive `lhs ∗ rhs` in the layout that XLA's CPU backend is fast in, closed under differentiation.

XLA's CPU backend hands a convolution to its fast kernels only in the canonical layout: channels last, kernel
[*window, in, out]. The transposes of `jax.lax.conv_general_dilated` are convolutions in *other* layouts. Outside a loop
XLA rewrites those; inside the body of `scan`, `while` or `map` it does not, and a naive loop nest runs 25 times slower.
Here both transposes are the same primitive on transposed operands: every derivative, of any order, is canonical.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Num

Pads: TypeAlias = tuple[tuple[int, int], ...]


def convolve(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    *,
    strides: tuple[int, ...],
    padding: Pads,
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    precision: Any = None,
) -> Num[Array, "..."]:
    """Images [batch, *spatial, in] ∗ kernel [*window, in, out] → images [batch, *spatial', out].

    Args:
        lhs: The images.
        rhs: The kernel.
        strides: One stride per spatial axis.
        padding: (low, high) per spatial axis; may be negative.
        lhs_dilation: Zeros put between pixels, factor per spatial axis.
        rhs_dilation: Zeros put between kernel entries, factor per spatial axis.
        precision: As in `jax.lax`.
    """
    return _convolution_p.bind(
        *_vary_alike(lhs, rhs),
        strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        precision=precision,
    )


def channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    """Positions of (batch, channel, *spatial), of (out, in, *window), and of the result's axes."""
    spatial = tuple(range(1, ndim - 1))
    images = (0, ndim - 1, *spatial)
    return lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)


def dilated(size: int, factor: int) -> int:
    """Extent of an axis after factor − 1 zeros are put between its entries."""
    return 0 if size == 0 else 1 + factor * (size - 1)


def _vary_alike(lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Inside `shard_map`, mark both operands as varying over the same mesh axes, as every `jax.lax` operation does."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in (lhs, rhs)]
    missing = [tuple((varying[0] | varying[1]) - own) for own in varying]
    lhs, rhs = (lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip((lhs, rhs), missing, strict=True))
    return lhs, rhs


def _lax_convolution(lhs: Array, rhs: Array, *, strides, padding, lhs_dilation, rhs_dilation, precision) -> Array:
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, channels_last(lhs.ndim), precision=precision
    )


def _transpose_lhs(g: Array, lhs, rhs: Array, *, strides, padding, lhs_dilation, rhs_dilation, precision) -> Array:
    """∂⟨g, lhs ∗ rhs⟩/∂lhs: the dilated g convolved with the kernel turned by 180° and its channels swapped."""
    pads = []
    for axis, (low, _) in enumerate(padding):
        image = dilated(lhs.aval.shape[axis + 1], lhs_dilation[axis])
        window = dilated(rhs.shape[axis], rhs_dilation[axis])
        before = window - low - 1
        pads.append((before, image + window - 1 - dilated(g.shape[axis + 1], strides[axis]) - before))
    turned = jnp.swapaxes(jnp.flip(rhs, range(rhs.ndim - 2)), -1, -2)
    return convolve(
        g,
        turned,
        strides=lhs_dilation,
        padding=tuple(pads),
        lhs_dilation=strides,
        rhs_dilation=rhs_dilation,
        precision=precision,
    )


def _transpose_rhs(g: Array, lhs: Array, rhs, *, strides, padding, lhs_dilation, rhs_dilation, precision) -> Array:
    """∂⟨g, lhs ∗ rhs⟩/∂rhs: images (channels as batch) convolved with the dilated g (examples as input channels)."""
    pads = []
    for axis, (low, _) in enumerate(padding):
        image = dilated(lhs.shape[axis + 1], lhs_dilation[axis])
        window = dilated(rhs.aval.shape[axis], rhs_dilation[axis])
        pads.append((low, dilated(g.shape[axis + 1], strides[axis]) + window - 1 - image - low))
    kernel = convolve(
        jnp.swapaxes(lhs, 0, -1),
        jnp.moveaxis(g, 0, -2),
        strides=rhs_dilation,
        padding=tuple(pads),
        lhs_dilation=lhs_dilation,
        rhs_dilation=strides,
        precision=precision,
    )
    return jnp.moveaxis(kernel, 0, -2)


def _batch(operands: Sequence[Array], axes: Sequence[int | None], **params) -> tuple[Array, int]:
    """One batched operand is folded into the batch or the output channels, which keeps the convolution canonical."""
    lhs, rhs = operands
    lhs_axis, rhs_axis = axes
    if lhs_axis is not None and rhs_axis is not None:
        # A grouped convolution, which lax knows how to write.
        return jax.vmap(functools.partial(_lax_convolution, **params), (lhs_axis, rhs_axis))(lhs, rhs), 0
    if lhs_axis is not None:
        lhs = jnp.moveaxis(lhs, lhs_axis, 0)
        out = convolve(lhs.reshape(lhs.shape[0] * lhs.shape[1], *lhs.shape[2:]), rhs, **params)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    if rhs_axis is not None:
        rhs = jnp.moveaxis(rhs, rhs_axis, -2)
        out = convolve(lhs, rhs.reshape(*rhs.shape[:-2], rhs.shape[-2] * rhs.shape[-1]), **params)
        return out.reshape(*out.shape[:-1], *rhs.shape[-2:]), out.ndim - 1
    raise AssertionError("vmap calls a batching rule only where an operand is batched.")


_convolution_p = Primitive("canonical_convolution")
_convolution_p.def_impl(_lax_convolution)
_convolution_p.def_abstract_eval(
    lambda lhs, rhs, **params: jax.make_jaxpr(functools.partial(_lax_convolution, **params))(lhs, rhs).out_avals[0]
)
mlir.register_lowering(_convolution_p, mlir.lower_fun(_lax_convolution, multiple_results=False))
ad.defbilinear(_convolution_p, _transpose_lhs, _transpose_rhs)
batching.primitive_batchers[_convolution_p] = _batch
