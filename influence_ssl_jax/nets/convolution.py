"""Convolutions whose derivatives are convolutions too, also inside loops on a CPU."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
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


Padding: TypeAlias = str | Sequence[tuple[int, int]]


def conv_general_dilated(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
) -> Num[Array, "..."]:
    """`jax.lax.conv_general_dilated`, equal bit for bit, with canonical transposes (`nets.canonical`).

    Fits `nn.Conv(conv_general_dilated=…)`. Grouped convolutions and layouts other than channels-last with kernel
    [*window, in, out] are passed on to `jax.lax`.

    Args:
        lhs: Images [batch, *spatial, in].
        rhs: Kernel [*window, in, out].
        window_strides: One stride per spatial axis.
        padding: "SAME", "VALID", "SAME_LOWER", or (low, high) per spatial axis.
        lhs_dilation: Zeros put between pixels, factor per spatial axis.
        rhs_dilation: Zeros put between kernel entries, factor per spatial axis.
        dimension_numbers: As in `jax.lax`.
        feature_group_count: As in `jax.lax`.
        batch_group_count: As in `jax.lax`.
        precision: As in `jax.lax`.

    Returns:
        Images [batch, *spatial', out].
    """
    ones = (1,) * (lhs.ndim - 2)
    lhs_dilation, rhs_dilation = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if feature_group_count != 1 or batch_group_count != 1 or numbers != channels_last(lhs.ndim):
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            numbers,
            feature_group_count,
            batch_group_count,
            precision,
        )
    if isinstance(padding, str):
        # As in lax: a name is resolved on the undilated image, and is refused where the image is dilated.
        if lhs_dilation != ones:
            raise ValueError(
                f"A dilated image needs explicit padding, got padding={padding!r} with lhs_dilation={lhs_dilation}; "
                "pass (low, high) per spatial axis."
            )
        window = [dilated(size, factor) for size, factor in zip(rhs.shape[:-2], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, window_strides, padding)
    return convolve(
        lhs,
        rhs,
        strides=tuple(window_strides),
        padding=tuple((int(low), int(high)) for low, high in padding),
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        precision=precision,
    )


@contextlib.contextmanager
def canonical_convolutions() -> Iterator[None]:
    """Within it, every ordinary `nn.Conv` of any linen module uses `conv_general_dilated` above, on a CPU.

    Accelerators and layers that were given a convolution of their own are left alone.
    """
    if jax.default_backend() == "cpu":
        with nn.intercept_methods(_with_canonical_convolution):
            yield
    else:
        yield


def with_canonical_convolutions(model: nnx.Module) -> nnx.Module:
    """Let every ordinary `nnx.Conv` inside a model use `conv_general_dilated` above, on a CPU.

    Args:
        model: A model that nobody else holds, as `nnx.merge` returns: it is changed.
    """
    if jax.default_backend() == "cpu":
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Conv) and layer.conv_general_dilated is lax.conv_general_dilated:
                layer.conv_general_dilated = _of_nnx
    return model


def _of_nnx(
    *args: Any, out_sharding: Any = None, preferred_element_type: Any = None, **kwargs: Any
) -> Num[Array, "..."]:
    """Call `conv_general_dilated` with the arguments that `nnx.Conv` gives; those that it has not go to `jax.lax`."""
    if out_sharding is None and preferred_element_type is None:
        return conv_general_dilated(*args, **kwargs)
    given = {"out_sharding": out_sharding, "preferred_element_type": preferred_element_type}
    return lax.conv_general_dilated(*args, **kwargs, **given)


def _with_canonical_convolution(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    layer = context.module
    ordinary = (
        isinstance(layer, nn.Conv)
        and context.method_name == "__call__"
        and layer.conv_general_dilated is None
        and layer.conv_general_dilated_cls is None
    )
    if not ordinary:
        return call(*args, **kwargs)
    # A bound module is frozen, and a clone of it would register a second submodule under the same name. The bound layer
    # is itself a copy that flax made for this one `apply`, so lending it the attribute touches no module of the user's.
    object.__setattr__(layer, "conv_general_dilated", conv_general_dilated)
    try:
        return call(*args, **kwargs)
    finally:
        object.__setattr__(layer, "conv_general_dilated", None)
