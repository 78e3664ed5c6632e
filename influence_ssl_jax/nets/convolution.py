"""`lax.conv_general_dilated` whose gradient is fast inside loops on a CPU, and how every `nn.Conv` comes to use it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
from jax import lax
from jaxtyping import Array, Num

from influence_ssl_jax.nets.canonical import channels_last, convolve, dilated

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
