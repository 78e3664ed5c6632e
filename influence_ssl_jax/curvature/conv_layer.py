"""A convolution as a matrix layer on patches, whatever its geometry."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.layer import MatrixLayer, with_one
from influence_ssl_jax.nets.convolution import conv_general_dilated


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

    def gradient(
        self, inputs: Float[Array, "images *pixels"], gradients: Float[Array, "images *written"]
    ) -> Float[Array, "images groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` without the patches: line by line of the window."""
        rows = self.output_rows(gradients)
        found = self._in_place_of_convolution(_outer(rows, self.groups), inputs)
        return jnp.concatenate([found, jnp.sum(rows, axis=1)[:, :, None]], axis=2) if self.module.use_bias else found

    def input_rows(self, inputs: Float[Array, "images *pixels"]) -> Float[Array, "images positions groups inputs"]:
        """The patches, each ordered as the kernel: window, then channels of the group."""
        area = math.prod(self.window)
        patches = self._in_place_of_convolution(_patches, inputs)
        rows = patches.reshape(inputs.shape[0], -1, area, self.groups, self._rows // area)
        rows = jnp.swapaxes(rows, 2, 3).reshape(inputs.shape[0], -1, self.groups, self._rows)
        return with_one(rows) if self.module.use_bias else rows

    def _in_place_of_convolution(
        self, compute: Callable[..., Array], inputs: Float[Array, "images *pixels"]
    ) -> Float[Array, "images *computed"]:
        """What `compute` makes of the padded inputs and the geometry that the module would hand to a convolution."""
        like = self.module.clone(use_bias=False, conv_general_dilated=compute)
        kernel = jnp.zeros((*self.window, self._rows // math.prod(self.window), self.module.features), inputs.dtype)
        computed = like.apply({"params": {"kernel": kernel}}, inputs)
        assert isinstance(computed, jax.Array)
        return computed

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


def _patches(lhs: Array, rhs: Array, window_strides, padding, lhs_dilation, rhs_dilation, **_: object) -> Array:
    """In the place of a convolution: the patches it would have read, [images, *positions, window · channels].

    Strided slices, ordered as a kernel is: [*window, channel]. (`jax.lax.conv_general_dilated_patches` is itself a
    convolution, with as many output channels as a patch has entries, and costs many times as much.)
    """
    shifted = _shifted(lhs, rhs.shape[:-2], window_strides, padding, lhs_dilation, rhs_dilation)
    return jnp.concatenate(shifted, axis=-1)


def _outer(gradients: Array, groups: int) -> Callable[..., Array]:
    """In the place of a convolution: `Σ_t patch_t s_tᵀ` of every image, [images, groups, window · channels, outputs].

    One line of the window at a time: whole patches take the window's area in memory, and on a CPU filling them costs
    ten times what the products do.
    """

    def outer(lhs: Array, rhs: Array, window_strides, padding, lhs_dilation, rhs_dilation, **_: object) -> Array:
        window, images = rhs.shape[:-2], lhs.shape[0]
        shifted = _shifted(lhs, window, window_strides, padding, lhs_dilation, rhs_dilation)
        lines = []
        for start in range(0, len(shifted), window[-1]):
            # The barrier keeps XLA from fusing the slices into the product, element by element.
            line = jax.lax.optimization_barrier(jnp.stack(shifted[start : start + window[-1]], axis=-2))
            rows = line.reshape(images, -1, window[-1], groups, lhs.shape[-1] // groups)
            found = jnp.einsum("ntgo,ntwgc->ngowc", gradients, rows)
            lines.append(found.reshape(images, groups, gradients.shape[-1], -1))
        return jnp.swapaxes(jnp.concatenate(lines, axis=-1), -1, -2)

    return outer


def _shifted(
    lhs: Array, window: tuple[int, ...], window_strides, padding, lhs_dilation, rhs_dilation
) -> list[Float[Array, "images *positions channels"]]:
    """What each place of the window reads at every position, in the order of a kernel."""
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
    return slices
