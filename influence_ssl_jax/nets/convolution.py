"""Define convolutions whose derivatives are convolutions too.

On a CPU they stay fast inside loops, where the usual derivative of a convolution is slow.
"""

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
""""""


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
    """Convolve images [batch, *spatial, in] with a kernel [*window, in, out].

    Args:
        lhs: The images.
        rhs: The kernel.
        strides: One stride for each spatial axis.
        padding: (low, high) for each spatial axis; may be negative.
        lhs_dilation: Dilation of the images, one factor for each spatial axis; the gaps are zeros.
        rhs_dilation: Dilation of the kernel, one factor for each spatial axis.
        precision: As in `jax.lax`.

    Returns:
        Images [batch, *spatial', out].
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
    """Return the positions of the axes of images, kernel and result.

    Images and result are [batch, *spatial, channel], the kernel is [*window, in, out].
    """
    spatial = tuple(range(1, ndim - 1))
    images = (0, ndim - 1, *spatial)
    return lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)


def dilated_extent(size: int, factor: int) -> int:
    """Return an axis's extent after `factor − 1` zeros between its entries."""
    return 0 if size == 0 else 1 + factor * (size - 1)


def _vary_alike(lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Mark both operands as varying over the same mesh axes inside `shard_map`.

    Every operation of `jax.lax` does this.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in (lhs, rhs)]
    missing = [tuple((varying[0] | varying[1]) - own) for own in varying]
    lhs, rhs = (lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip((lhs, rhs), missing, strict=True))
    return lhs, rhs


def _lax_convolution(lhs: Array, rhs: Array, *, strides, padding, lhs_dilation, rhs_dilation, precision) -> Array:
    """Convolve by `jax.lax`, channels last."""
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, channels_last(lhs.ndim), precision=precision
    )


def _transpose_lhs(g: Array, lhs, rhs: Array, *, strides, padding, lhs_dilation, rhs_dilation, precision) -> Array:
    """Compute `∂⟨g, lhs ∗ rhs⟩/∂lhs`.

    The dilated `g` is convolved with the kernel turned by 180°, with its channels swapped.
    """
    pads = []
    for axis, (low, _) in enumerate(padding):
        image = dilated_extent(lhs.aval.shape[axis + 1], lhs_dilation[axis])
        window = dilated_extent(rhs.shape[axis], rhs_dilation[axis])
        before = window - low - 1
        pads.append((before, image + window - 1 - dilated_extent(g.shape[axis + 1], strides[axis]) - before))
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
    """Compute `∂⟨g, lhs ∗ rhs⟩/∂rhs`.

    The images (channels as batch) are convolved with the dilated `g` (examples as input channels).
    """
    pads = []
    for axis, (low, _) in enumerate(padding):
        image = dilated_extent(lhs.shape[axis + 1], lhs_dilation[axis])
        window = dilated_extent(rhs.aval.shape[axis], rhs_dilation[axis])
        pads.append((low, dilated_extent(g.shape[axis + 1], strides[axis]) + window - 1 - image - low))
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
    """Fold the batched operand into the batch or into the output channels.

    The result is again a convolution of this form. If both operands are batched, it is a grouped convolution of
    `jax.lax`.
    """
    lhs, rhs = operands
    lhs_axis, rhs_axis = axes
    if lhs_axis is not None and rhs_axis is not None:
        # lax writes this as a grouped convolution.
        return jax.vmap(functools.partial(_lax_convolution, **params), (lhs_axis, rhs_axis))(lhs, rhs), 0
    if lhs_axis is not None:
        lhs = jnp.moveaxis(lhs, lhs_axis, 0)
        out = convolve(lhs.reshape(lhs.shape[0] * lhs.shape[1], *lhs.shape[2:]), rhs, **params)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    if rhs_axis is not None:
        rhs = jnp.moveaxis(rhs, rhs_axis, -2)
        out = convolve(lhs, rhs.reshape(*rhs.shape[:-2], rhs.shape[-2] * rhs.shape[-1]), **params)
        return out.reshape(*out.shape[:-1], *rhs.shape[-2:]), out.ndim - 1
    raise AssertionError("vmap calls a batching rule only if an operand is batched.")


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
    """Convolve as `jax.lax.conv_general_dilated`, with derivatives that are convolutions of this form.

    The values are equal bit for bit. It is meant for `nn.Conv(conv_general_dilated=…)`. Grouped convolutions, and
    layouts other than channels-last with kernel [*window, in, out], are passed on to `jax.lax`.

    Args:
        lhs: Images [batch, *spatial, in].
        rhs: Kernel [*window, in, out].
        window_strides: One stride for each spatial axis.
        padding: "SAME", "VALID", "SAME_LOWER", or (low, high) for each spatial axis.
        lhs_dilation: Dilation of the images, one factor for each spatial axis; the gaps are zeros.
        rhs_dilation: Dilation of the kernel, one factor for each spatial axis.
        dimension_numbers: As in `jax.lax`.
        feature_group_count: As in `jax.lax`.
        batch_group_count: As in `jax.lax`.
        precision: As in `jax.lax`.

    Returns:
        Images [batch, *spatial', out].

    Raises:
        ValueError: If `padding` is a name and the images are dilated.
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
        # As in lax: a name is resolved on the undilated image, and refused if the image is dilated.
        if lhs_dilation != ones:
            raise ValueError(
                f"A dilated image needs explicit padding, got padding={padding!r} with lhs_dilation={lhs_dilation}; "
                "pass (low, high) per spatial axis."
            )
        window = [dilated_extent(size, factor) for size, factor in zip(rhs.shape[:-2], rhs_dilation, strict=True)]
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
    """Replace linen modules' convolutions by this module's `conv_general_dilated`, on a CPU.

    It replaces those of every ordinary `nn.Conv` that is called inside the block. Accelerators, and layers with a
    convolution of their own, are left unchanged.
    """
    if jax.default_backend() == "cpu":
        with nn.intercept_methods(_with_canonical_convolution):
            yield
    else:
        yield


def with_canonical_convolutions(model: nnx.Module) -> nnx.Module:
    """Replace an nnx model's convolutions by this module's `conv_general_dilated`, on a CPU.

    Args:
        model: A model that no other code uses, as `nnx.merge` returns it: it is changed in place.
    """
    if jax.default_backend() == "cpu":
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Conv) and layer.conv_general_dilated is lax.conv_general_dilated:
                layer.conv_general_dilated = _of_nnx
    return model


def _of_nnx(
    *args: Any, out_sharding: Any = None, preferred_element_type: Any = None, **kwargs: Any
) -> Num[Array, "..."]:
    """Call `conv_general_dilated` with the arguments of `nnx.Conv`.

    If an argument is set that it does not have, `jax.lax` is called instead.
    """
    if out_sharding is None and preferred_element_type is None:
        return conv_general_dilated(*args, **kwargs)
    options = {"out_sharding": out_sharding, "preferred_element_type": preferred_element_type}
    return lax.conv_general_dilated(*args, **kwargs, **options)


def _with_canonical_convolution(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """Call a layer, with its convolution replaced in an ordinary `nn.Conv`."""
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
    # is a copy that flax made for this one `apply`, so setting its attribute changes no module of the user.
    object.__setattr__(layer, "conv_general_dilated", conv_general_dilated)
    try:
        return call(*args, **kwargs)
    finally:
        object.__setattr__(layer, "conv_general_dilated", None)
