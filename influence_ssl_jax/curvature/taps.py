"""Layer inputs and output-gradients of any linen network, by one batched backward pass, the model untouched."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.layers import AffineLayer, Layer, layer_of
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.types import Frozen, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tap:
    """What one call of one layer read, and the gradient with respect to what it wrote.

    Attributes:
        inputs: The layer's inputs (`x̂` for an affine layer).
        gradients: Gradient with respect to the layer's outputs.
        layer: Which layer, static.
    """

    inputs: Float[Array, "images *read"]
    gradients: Float[Array, "images *written"]
    layer: Layer = dataclasses.field(metadata={"static": True})


Pullback: TypeAlias = Callable[[Float[Array, "images embedding"]], list[Tap]]


def record(
    network: Network, params: Params, frozen: Frozen, images: Float[Array, "images height width channels"]
) -> tuple[Float[Array, "images embedding"], Pullback]:
    """Embed images and return, beside the embeddings, the map from their gradient to every layer's tap.

    A zero is added to the output of each layer; the gradient with respect to that zero is the output-gradient. Weights
    are not differentiated, so no weight gradient is computed. A layer that is called twice has two taps.

    Returns:
        The embeddings, and `pullback(gradient of the embeddings) -> taps in the order of the calls`.
    """

    def shapes() -> list[Array]:
        zeros: list[Array] = []
        with nn.intercept_methods(_recorder([], [], zeros, None)):
            network(params, frozen, images)
        return zeros

    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in jax.eval_shape(shapes)]
    layers: list[Layer] = []

    def forward(zeros: list[Array]) -> tuple[Array, list[Array]]:
        layers.clear()
        inputs: list[Array] = []
        with nn.intercept_methods(_recorder(layers, inputs, [], zeros)):
            return network(params, frozen, images), inputs

    embeddings, backward, inputs = jax.vjp(forward, zeros, has_aux=True)

    def pullback(cotangent: Float[Array, "images embedding"]) -> list[Tap]:
        (gradients,) = backward(cotangent)
        return [Tap(_wide(a), _wide(s), layer) for a, s, layer in zip(inputs, gradients, layers, strict=True)]

    return embeddings, pullback


def _wide(array: Array) -> Array:
    """At least float32: what layers compute in 16 bits is added up in 32."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _recorder(
    layers: list[Layer], inputs: list[Array], written: list[Array], zeros: list[Array] | None
) -> Callable[..., Any]:
    """An interceptor that notes each known layer's call and, given zeros, adds one to its output."""

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__" or not args:
            return call(*args, **kwargs)
        layer = layer_of(context.module, args[0])
        if layer is None or not layer.leaves:
            return call(*args, **kwargs)
        read = args[0]
        output = call(*args, **kwargs)
        if isinstance(layer, AffineLayer):
            read = _standardised(context.module, read)
        if zeros is not None:
            output = output + zeros[len(layers)]
        layers.append(layer)
        inputs.append(read)
        written.append(output)
        return output

    return intercept


def _standardised(module: nn.Module, inputs: Array) -> Array:
    """`x̂` of a BatchNorm in evaluation mode."""
    mean, var = (module.get_variable("batch_stats", name) for name in ("mean", "var"))
    if mean is None or var is None or not isinstance(module, nn.BatchNorm):
        raise StructureError(
            f"The BatchNorm at {'/'.join(module.path)} has no running statistics in frozen['batch_stats']; "
            "pass those that training kept."
        )
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    return (inputs - mean.reshape(shape)) * jax.lax.rsqrt(var.reshape(shape) + module.epsilon)
