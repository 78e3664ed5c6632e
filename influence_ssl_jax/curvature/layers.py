"""What a layer's parameters are to its inputs: a weight matrix in homogeneous coordinates, or an affine map."""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.nets.convolution import conv_general_dilated
from influence_ssl_jax.types import PyTree


class Layer(abc.ABC):
    """One call of one module: how its parameters' gradient follows from what it read and what came back.

    Subclasses are frozen dataclasses with the module's `path` in the parameter tree, hashable and static under `jit`.
    """

    path: tuple[str, ...]

    @property
    @abc.abstractmethod
    def leaves(self) -> tuple[str, ...]:
        """Names of the parameters that this layer explains."""


class MatrixLayer(Layer):
    """`y_t = W̄ᵀ ā_t` at every position t, with `ā` the inputs of the position and, where there is a bias, a last 1.

    The gradient of an example is `Σ_t ā_t s_tᵀ`, [groups, inputs, outputs], `s` the gradient with respect to `y`.
    """

    groups: int
    inputs: int
    outputs: int

    @abc.abstractmethod
    def project_inputs(
        self, inputs: Float[Array, "images *pixels"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """`ā_tᵀ basis` at every position, without forming `ā`."""

    @abc.abstractmethod
    def input_rows(self, inputs: Float[Array, "images *pixels"]) -> Float[Array, "images positions groups inputs"]:
        """`ā_t` at every position."""

    @abc.abstractmethod
    def to_matrix(self, leaves: dict[str, Array]) -> Float[Array, "groups inputs outputs"]:
        """The layer's parameters (or a vector of their structure) as `W̄`."""

    @abc.abstractmethod
    def from_matrix(self, matrix: Float[Array, "groups inputs outputs"]) -> dict[str, Array]:
        """The inverse of `to_matrix`."""

    def output_rows(
        self, gradients: Float[Array, "images *written"]
    ) -> Float[Array, "images positions groups outputs"]:
        """`s_t` at every position."""
        return gradients.reshape(gradients.shape[0], -1, self.groups, self.outputs)


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
        return _with_one(rows) if self.bias else rows

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
class ConvLayer(MatrixLayer):
    """`nn.Conv` of any stride, padding, dilation and grouping: a matrix layer on patches.

    Flax itself resolves padding and dilation: patches and projected patches are that very module, called with another
    convolution or another kernel.
    """

    path: tuple[str, ...]
    module: nn.Conv
    window: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int

    @property
    def leaves(self) -> tuple[str, ...]:
        """`kernel`, and `bias` where there is one."""
        return ("kernel", "bias") if self.module.use_bias else ("kernel",)

    @property
    def _rows(self) -> int:
        return self.inputs - 1 if self.module.use_bias else self.inputs

    def project_inputs(
        self, inputs: Float[Array, "images *pixels"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """A convolution with the basis as its kernel: `rank` output channels per group, no patches in memory."""
        rank = basis.shape[-1]
        like = self.module.clone(features=self.groups * rank, use_bias=False, conv_general_dilated=conv_general_dilated)
        kernel = jnp.moveaxis(basis[:, : self._rows], 0, 1).reshape(*self.window, -1, self.groups * rank)
        projected = like.apply({"params": {"kernel": kernel}}, inputs)
        assert isinstance(projected, jax.Array)
        rows = projected.reshape(inputs.shape[0], -1, self.groups, rank)
        return rows + basis[:, -1][None, None] if self.module.use_bias else rows

    def input_rows(self, inputs: Float[Array, "images *pixels"]) -> Float[Array, "images positions groups inputs"]:
        """The patches, each ordered as the kernel: window, then channels of the group."""
        like = self.module.clone(use_bias=False, conv_general_dilated=_patches)
        kernel = jnp.zeros((*self.window, self._rows // _area(self.window), self.module.features), inputs.dtype)
        patches = like.apply({"params": {"kernel": kernel}}, inputs)
        assert isinstance(patches, jax.Array)
        rows = patches.reshape(inputs.shape[0], -1, _area(self.window), self.groups, self._rows // _area(self.window))
        rows = jnp.swapaxes(rows, 2, 3).reshape(inputs.shape[0], -1, self.groups, self._rows)
        return _with_one(rows) if self.module.use_bias else rows

    def to_matrix(self, leaves: dict[str, Array]) -> Float[Array, "groups inputs outputs"]:
        """The kernel [window · channels, groups, outputs] with groups first, the bias as last row."""
        kernel = jnp.moveaxis(leaves["kernel"].reshape(self._rows, self.groups, self.outputs), 1, 0)
        if not self.module.use_bias:
            return kernel
        return jnp.concatenate([kernel, leaves["bias"].reshape(self.groups, 1, self.outputs)], axis=1)

    def from_matrix(self, matrix: Float[Array, "groups inputs outputs"]) -> dict[str, Array]:
        """Split the last row off as the bias and put the window back."""
        kernel = jnp.moveaxis(matrix[:, : self._rows], 0, 1).reshape(*self.window, -1, self.groups * self.outputs)
        return {"kernel": kernel, "bias": matrix[:, -1].reshape(-1)} if self.module.use_bias else {"kernel": kernel}


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
        rows = _area(window) * inputs.shape[-1] // groups + int(module.use_bias)
        padding = module.padding if isinstance(module.padding, str | int) else tuple(map(_hashable, module.padding))
        plain = module.clone(parent=None, name=None, conv_general_dilated=None, padding=padding)
        return ConvLayer(module.path, plain, window, rows, module.features // groups, groups)
    if isinstance(module, nn.BatchNorm) and module.axis in (-1, inputs.ndim - 1):
        return AffineLayer(module.path, module.use_scale, module.use_bias)
    return None


def subtree(tree: PyTree, path: tuple[str, ...]) -> dict[str, Array]:
    """The parameters of the module at `path`."""
    return functools.reduce(lambda node, name: node[name], path, tree)


def _hashable(pad: int | Sequence[int]) -> int | tuple[int, ...]:
    return pad if isinstance(pad, int) else tuple(pad)


def _with_one(rows: Array) -> Array:
    return jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)


def _area(window: tuple[int, ...]) -> int:
    return functools.reduce(lambda a, b: a * b, window, 1)


def _patches(lhs: Array, rhs: Array, window_strides, padding, lhs_dilation, rhs_dilation, **_: object) -> Array:
    """In the place of a convolution: the patches it would have read, [images, *positions, window · channels].

    Strided slices, ordered as a kernel is: [*window, channel]. (`jax.lax.conv_general_dilated_patches` is itself a
    convolution, with as many output channels as a patch has entries, and costs many times as much.)
    """
    window = rhs.shape[:-2]
    if isinstance(padding, str):
        reach = [1 + factor * (size - 1) for size, factor in zip(window, rhs_dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
    edges = [(low, high, factor - 1) for (low, high), factor in zip(padding, lhs_dilation, strict=True)]
    padded = jax.lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    sizes = [
        (total - 1 - factor * (size - 1)) // stride + 1
        for total, factor, size, stride in zip(padded.shape[1:-1], rhs_dilation, window, window_strides, strict=True)
    ]
    slices = []
    for offset in itertools.product(*map(range, window)):
        starts = [place * factor for place, factor in zip(offset, rhs_dilation, strict=True)]
        stops = [s + (n - 1) * stride + 1 for s, n, stride in zip(starts, sizes, window_strides, strict=True)]
        slices.append(
            jax.lax.slice(padded, (0, *starts, 0), (lhs.shape[0], *stops, lhs.shape[-1]), (1, *window_strides, 1))
        )
    return jnp.concatenate(slices, axis=-1)
