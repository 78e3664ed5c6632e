"""The known layers, and which of them a module is."""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.conv_layer import ConvLayer
from influence_ssl_jax.curvature.layer import Layer, MatrixLayer, outer_products, with_one

__all__ = ["AffineLayer", "ConvLayer", "DenseLayer", "Layer", "MatrixLayer", "layer_of"]


@dataclasses.dataclass(frozen=True)
class DenseLayer(MatrixLayer):
    """`nn.Dense`; every axis between the first and the last is a position."""

    path: tuple[str, ...]
    inputs: int
    outputs: int
    bias: bool
    groups: int = 1

    @property
    def leaves(self) -> tuple[str, ...]:
        """`kernel`, and `bias` where there is one."""
        return ("kernel", "bias") if self.bias else ("kernel",)

    def input_rows(self, inputs: Float[Array, "images *pixels"]) -> Float[Array, "images positions groups inputs"]:
        """The inputs themselves."""
        rows = inputs.reshape(inputs.shape[0], -1, 1, inputs.shape[-1])
        return with_one(rows) if self.bias else rows

    def gradient(
        self, inputs: Float[Array, "images *pixels"], gradients: Float[Array, "images *written"]
    ) -> Float[Array, "images groups inputs outputs"]:
        """One matrix product per image."""
        return outer_products(self.input_rows(inputs), self.output_rows(gradients))

    def project_inputs(
        self, inputs: Float[Array, "images *pixels"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """One matrix product."""
        return self.input_rows(inputs) @ basis[0]

    def to_matrix(self, leaves: dict[str, Array]) -> Float[Array, "groups inputs outputs"]:
        """The kernel, the bias as its last row."""
        rows = [leaves["kernel"], leaves["bias"][None]] if self.bias else [leaves["kernel"]]
        return jnp.concatenate(rows)[None]

    def from_matrix(self, matrix: Float[Array, "groups inputs outputs"]) -> dict[str, Array]:
        """Split the last row off as the bias."""
        if self.bias:
            return {"kernel": matrix[0, :-1], "bias": matrix[0, -1]}
        return {"kernel": matrix[0]}


@dataclasses.dataclass(frozen=True)
class AffineLayer(Layer):
    """`y = scale · x̂ + bias` in the last axis: BatchNorm, `x̂` standardised by its running statistics."""

    path: tuple[str, ...]
    scale: bool
    bias: bool

    @property
    def leaves(self) -> tuple[str, ...]:
        """`scale` and `bias`, whichever there is."""
        return tuple(name for name, used in (("scale", self.scale), ("bias", self.bias)) if used)

    def gradient(
        self, inputs: Float[Array, "images *pixels"], gradients: Float[Array, "images *pixels"]
    ) -> dict[str, Float[Array, "images channels"]]:
        """Per-image gradients `Σ_t s_t x̂_t` of the scale and `Σ_t s_t` of the bias."""
        positions = tuple(range(1, inputs.ndim - 1))
        found = {"scale": jnp.sum(gradients * inputs, positions), "bias": jnp.sum(gradients, positions)}
        return {name: found[name] for name in self.leaves}


def layer_of(module: nn.Module, inputs: Float[Array, "images *pixels"]) -> Layer | None:
    """The layer that a bound module is, or None if its parameters (if any) are explained by no known layer."""
    if isinstance(module, nn.Dense):
        rows = inputs.shape[-1] + int(module.use_bias)
        return DenseLayer(module.path, rows, module.features, module.use_bias)
    if isinstance(module, nn.Conv) and module.mask is None:
        window = module.kernel_size
        window = (window,) if isinstance(window, int) else tuple(window)
        groups = module.feature_group_count
        rows = math.prod(window) * inputs.shape[-1] // groups + int(module.use_bias)
        padding = module.padding if isinstance(module.padding, str | int) else tuple(map(_hashable, module.padding))
        plain = module.clone(parent=None, name=None, conv_general_dilated=None, padding=padding)
        return ConvLayer(module.path, plain, window, rows, module.features // groups, groups)
    if isinstance(module, nn.BatchNorm) and module.axis in (-1, inputs.ndim - 1):
        return AffineLayer(module.path, module.use_scale, module.use_bias)
    return None


def _hashable(pad: int | Sequence[int]) -> int | tuple[int, ...]:
    return pad if isinstance(pad, int) else tuple(pad)
