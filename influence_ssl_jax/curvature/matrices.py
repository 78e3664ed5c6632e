"""Describe how operations multiply rows by a matrix of parameters.

A `Layout` says how a parameter becomes that matrix; a `Matrix` says which rows are multiplied by it.
"""

import abc
import dataclasses
import itertools
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.nets.convolution import conv_general_dilated

Shape: TypeAlias = tuple[int, ...]

SAME = ("convert_element_type", "copy", "copy_p", "sharding_constraint", "name", "pvary", "reduce_precision")
LAYOUTS = (*SAME, "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev", "slice", "index")
"""Primitives that only move entries; `index` takes one step of the leading axis of a loop."""

Kind: TypeAlias = Literal["same", "reshape", "broadcast", "transpose", "rev", "slice", "index"]


@dataclasses.dataclass(frozen=True)
class LayoutStep:
    """One change of layout, static and comparable.

    Attributes:
        kind: The kind of change.
        before: Shape before the change.
        after: Shape after it.
        data: The permutation, the reversed axes, the axes that a broadcast keeps, the (start, stop, stride) of a
            slice, or the index.
    """

    kind: Kind
    before: Shape
    after: Shape
    data: tuple[Any, ...] = ()

    @property
    def bijective(self) -> bool:
        """Whether every entry goes to exactly one place."""
        return self.kind in ("same", "reshape", "transpose", "rev")

    def apply(self, array: Any) -> Any:
        """Change the layout of an array of NumPy or JAX."""
        if self.kind == "same":
            return array
        if self.kind == "reshape":
            return array.reshape(self.after)
        if self.kind == "transpose":
            return array.transpose(self.data)
        if self.kind == "rev":
            return array[tuple(slice(None, None, -1) if k in self.data else slice(None) for k in range(array.ndim))]
        if self.kind == "slice":
            return array[tuple(slice(*part) for part in self.data)]
        if self.kind == "index":
            return array[self.data[0]]
        spread = [1] * len(self.after)
        for axis, place in enumerate(self.data):
            spread[place] = self.before[axis]
        broadcast = np.broadcast_to if isinstance(array, np.ndarray) else jnp.broadcast_to
        return broadcast(array.reshape(spread), self.after)

    def transpose(self, array: Array) -> Array:
        """Apply the transposed map: the inverse of a bijective change."""
        if self.kind == "same":
            return array
        if self.kind == "reshape":
            return array.reshape(self.before)
        if self.kind == "transpose":
            return array.transpose(tuple(int(k) for k in np.argsort(self.data)))
        if self.kind == "rev":
            return jnp.flip(array, self.data)
        if self.kind == "slice":
            return jnp.zeros(self.before, array.dtype).at[tuple(slice(*part) for part in self.data)].set(array)
        if self.kind == "index":
            return jnp.zeros(self.before, array.dtype).at[self.data[0]].set(array)
        kept = {place: self.before[axis] for axis, place in enumerate(self.data)}
        summed = tuple(k for k, size in enumerate(self.after) if kept.get(k) != size)
        return jnp.sum(array, axis=summed).reshape(self.before)


def layout_step(name: str, params: dict[str, Any], before: Shape, after: Shape) -> LayoutStep | None:
    """Describe a primitive as a change of layout.

    Args:
        name: The primitive.
        params: Its settings.
        before: Shape of its operand.
        after: Shape of its result.

    Returns:
        The change; None if the primitive does more than that.
    """
    if name in SAME:
        return LayoutStep("same", before, after)
    if name in ("squeeze", "expand_dims") or (name == "reshape" and params.get("dimensions") is None):
        return LayoutStep("reshape", before, after)
    if name == "broadcast_in_dim":
        dims = tuple(map(int, params["broadcast_dimensions"]))
        if math.prod(before) == math.prod(after) and list(dims) == sorted(dims):
            return LayoutStep("reshape", before, after)
        return LayoutStep("broadcast", before, after, dims)
    if name == "transpose":
        return LayoutStep("transpose", before, after, tuple(map(int, params["permutation"])))
    if name == "rev":
        return LayoutStep("rev", before, after, tuple(map(int, params["dimensions"])))
    if name == "slice":
        strides = params["strides"] or (1,) * len(before)
        parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return LayoutStep("slice", before, after, tuple(tuple(map(int, part)) for part in parts))
    if name == "index":
        return LayoutStep("index", before, after, (params["index"],))
    return None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parameter seen as a matrix [groups, inputs, outputs].

    Attributes:
        lead: Sizes of the leading axes that loops iterate over: the parameter is a stack of matrices.
        steps: Changes of layout from the array of one step to the matrix, all bijective.
    """

    lead: Shape
    steps: tuple[LayoutStep, ...]

    def to_matrix(self, leaf: Array) -> Array:
        """Convert [*lead, …] to [steps · groups, inputs, outputs]."""
        stack = leaf.reshape(-1, *self.steps[0].before)
        matrices = jax.vmap(self._forward)(stack)
        return matrices.reshape(-1, *matrices.shape[2:])

    def from_matrix(self, matrix: Array) -> Array:
        """Convert a matrix back to the parameter; it inverts `to_matrix`."""
        stack = matrix.reshape(math.prod(self.lead), -1, *matrix.shape[1:])
        return jax.vmap(self._backward)(stack).reshape(*self.lead, *self.steps[0].before)

    def _forward(self, array: Array) -> Array:
        for step in self.steps:
            array = step.apply(array)
        return array

    def _backward(self, array: Array) -> Array:
        for step in reversed(self.steps):
            array = step.transpose(array)
        return array


def natural_layout(shape: Shape) -> Layout:
    """Return the layout of a parameter as one matrix.

    The last axis of the parameter is the outputs; all others are the inputs.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.curvature.matrices import natural_layout
        >>> natural_layout((3, 4, 5)).to_matrix(jnp.zeros((3, 4, 5))).shape
        (1, 12, 5)
    """
    flat = (1, math.prod(shape[:-1]), shape[-1])
    return Layout((), (LayoutStep("reshape", shape, flat),))


Axes: TypeAlias = tuple[int, ...]


class Matrix(abc.ABC):
    """An operation `y_t = Wᵀ a_t` at every position t of an example.

    It may have groups, which share nothing. The gradient of an example is `Σ_t a_t s_tᵀ`, [groups, inputs, outputs],
    where `s` is the gradient with respect to `y`. Arrays have a leading axis of images. Subclasses are frozen
    dataclasses, static under `jit`.
    """

    @property
    @abc.abstractmethod
    def groups(self) -> int:
        """The number of groups."""

    @property
    @abc.abstractmethod
    def inputs(self) -> int:
        """The length of a row `a_t` of a group."""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """The length of a row `y_t` of a group."""

    @property
    @abc.abstractmethod
    def kernel_steps(self) -> tuple[LayoutStep, ...]:
        """The changes of layout from operand to matrix [groups, inputs, outputs]."""

    @abc.abstractmethod
    def input_rows(self, read: Float[Array, "images *read"]) -> Float[Array, "images positions groups inputs"]:
        """Return `a_t` at every position."""

    @abc.abstractmethod
    def output_rows(self, written: Any) -> Any:
        """Return `s_t` at every position: [images, positions, groups, outputs].

        Arrays of NumPy are taken too.
        """

    @abc.abstractmethod
    def project_inputs(
        self, read: Float[Array, "images *read"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """Compute `a_tᵀ basis` at every position without forming `a`."""

    @abc.abstractmethod
    def gradient(
        self, read: Float[Array, "views n *read"], gradients: Float[Array, "views n *written"]
    ) -> Float[Array, "n groups inputs outputs"]:
        """Compute `Σ_t a_t s_tᵀ` of every example, over the positions of all its views.

        One product sums over the views too: their gradients are never in memory beside each other.
        """

    def project_outputs(
        self, gradients: Float[Array, "images *written"], basis: Float[Array, "groups outputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """Compute `s_tᵀ basis` at every position.

        The product is written as rows times a matrix: from an einsum, XLA would make the transposed product of a
        transposed copy of the whole map.
        """
        return _times(self.output_rows(gradients), basis)


def _times(rows: Array, basis: Array) -> Array:
    """Multiply rows by a matrix, group by group."""
    return (rows[..., None, :] @ basis)[..., 0, :]


def _views_last(array: Float[Array, "views n *shape"]) -> Float[Array, "images *shape"]:
    """Merge views and examples: images, an example's views beside each other."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def _merge_positions(rows: Float[Array, "images positions groups width"], like: Array) -> Array:
    """Join the positions of an example's views.

    The result has the axes [n, views · positions, groups, width].

    Args:
        rows: The rows of `_views_last(like)`.
        like: [views, n, …].
    """
    return rows.reshape(like.shape[1], -1, *rows.shape[2:])


def outer_products(
    inputs: Float[Array, "images positions groups inputs"], outputs: Float[Array, "images positions groups outputs"]
) -> Float[Array, "images groups inputs outputs"]:
    """Compute `Σ_t a_t s_tᵀ` of every image from its rows."""
    if inputs.shape[2] == 1:  # a product of two matrices for each image, without an axis of groups between them
        return jnp.einsum("nti,nto->nio", inputs[:, :, 0], outputs[:, :, 0])[:, None]
    return jnp.einsum("ntgi,ntgo->ngio", inputs, outputs)


@dataclasses.dataclass(frozen=True)
class Product(Matrix):
    """A `dot_general`: a product of two arrays.

    Its shared batch axes are groups, its contracted axes are inputs, and the other axes of the kernel are outputs.

    Attributes:
        kernel: Shape of the kernel.
        read: Shape of the other operand.
        contracted: Contracted axes of the kernel and of the other operand.
        batch: Shared axes of the kernel and of the other operand.
        first: Whether the kernel is the left operand.
    """

    kernel: Shape
    read: Shape
    contracted: tuple[Axes, Axes]
    batch: tuple[Axes, Axes]
    first: bool

    @property
    def groups(self) -> int:
        """The size of the shared axes."""
        return math.prod(self.kernel[k] for k in self.batch[0])

    @property
    def inputs(self) -> int:
        """The size of the contracted axes."""
        return math.prod(self.kernel[k] for k in self.contracted[0])

    @property
    def outputs(self) -> int:
        """The size of the kernel's own axes."""
        return math.prod(self.kernel[k] for k in self._free(0))

    @property
    def kernel_steps(self) -> tuple[LayoutStep, ...]:
        """Shared axes first, then contracted ones, then the kernel's own."""
        order = (*self.batch[0], *self.contracted[0], *self._free(0))
        moved = tuple(self.kernel[k] for k in order)
        steps = [] if order == tuple(range(len(order))) else [LayoutStep("transpose", self.kernel, moved, order)]
        return (*steps, LayoutStep("reshape", moved, (self.groups, self.inputs, self.outputs)))

    def input_rows(self, read: Float[Array, "images *read"]) -> Float[Array, "images positions groups inputs"]:
        """Return the inputs as rows."""
        order = (*self._free(1), *self.batch[1], *self.contracted[1])
        rows = read.transpose(0, *(k + 1 for k in order))
        return rows.reshape(rows.shape[0], -1, self.groups, self.inputs)

    def output_rows(self, written: Any) -> Any:
        """Return the gradients as rows."""
        batch, own, other = len(self.batch[0]), len(self._free(0)), len(self._free(1))
        shared, rest = range(1, 1 + batch), range(1 + batch, 1 + batch + own + other)
        ours, theirs = (rest[:own], rest[own:]) if self.first else (rest[other:], rest[:other])
        rows = written.transpose(0, *theirs, *shared, *ours)
        return rows.reshape(rows.shape[0], -1, self.groups, self.outputs)

    def project_inputs(
        self, read: Float[Array, "images *read"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """Compute `a_tᵀ basis` by one matrix product."""
        return _times(self.input_rows(read), basis)

    def gradient(
        self, read: Float[Array, "views n *read"], gradients: Float[Array, "views n *written"]
    ) -> Float[Array, "n groups inputs outputs"]:
        """Compute `Σ_t a_t s_tᵀ` by one matrix product for each example."""
        inputs = _merge_positions(self.input_rows(_views_last(read)), read)
        return outer_products(inputs, _merge_positions(self.output_rows(_views_last(gradients)), gradients))

    def _free(self, side: int) -> Axes:
        """Return the axes that are neither shared nor contracted.

        They are those of the kernel (side 0) or of the other operand (side 1).
        """
        shape = self.kernel if side == 0 else self.read
        return tuple(k for k in range(len(shape)) if k not in self.contracted[side] and k not in self.batch[side])


@dataclasses.dataclass(frozen=True)
class Convolution(Matrix):
    """A convolution of any geometry, as a matrix on patches.

    Inputs are ordered by the window first, then by channels.

    Attributes:
        kernel: Shape of the kernel.
        kernel_axes: Its axes: outputs, inputs, then the window.
        read_axes: Axes of the images: batch, channels, then space.
        written_axes: Axes of the result: batch, channels, then space.
        channel_groups: Number of groups of channels.
        strides: One for each spatial axis.
        padding: (low, high) for each spatial axis.
        dilation: Zeros inserted between pixels: a factor for each spatial axis.
        kernel_dilation: Zeros inserted between entries of the kernel: a factor for each spatial axis.
    """

    kernel: Shape
    kernel_axes: Axes
    read_axes: Axes
    written_axes: Axes
    channel_groups: int
    strides: Axes
    padding: tuple[tuple[int, int], ...]
    dilation: Axes
    kernel_dilation: Axes

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return self.channel_groups

    @property
    def inputs(self) -> int:
        """The window's size times the number of channels of a group."""
        return math.prod(self.window) * self.kernel[self.kernel_axes[1]]

    @property
    def outputs(self) -> int:
        """The number of output channels of a group."""
        return self.kernel[self.kernel_axes[0]] // self.groups

    @property
    def window(self) -> Shape:
        """The sizes of the window."""
        return tuple(self.kernel[k] for k in self.kernel_axes[2:])

    @property
    def kernel_steps(self) -> tuple[LayoutStep, ...]:
        """The window first, then inputs, then outputs; groups are split from outputs."""
        order = (*self.kernel_axes[2:], self.kernel_axes[1], self.kernel_axes[0])
        moved = tuple(self.kernel[k] for k in order)
        steps = [] if order == tuple(range(len(order))) else [LayoutStep("transpose", self.kernel, moved, order)]
        if self.groups == 1:
            return (*steps, LayoutStep("reshape", moved, (1, self.inputs, self.outputs)))
        split = self.inputs, self.groups, self.outputs
        turned = LayoutStep("transpose", split, (self.groups, self.inputs, self.outputs), (1, 0, 2))
        return (*steps, LayoutStep("reshape", moved, split), turned)

    def output_rows(self, written: Any) -> Any:
        """Return the gradients as rows, channels last."""
        batch, channels, *space = (k + 1 for k in self.written_axes)
        rows = written.transpose(0, batch, *space, channels)
        return rows.reshape(rows.shape[0], -1, self.groups, self.outputs)

    def project_inputs(
        self, read: Float[Array, "images *read"], basis: Float[Array, "groups inputs rank"]
    ) -> Float[Array, "images positions groups rank"]:
        """Convolve with the basis as kernel, without patches in memory.

        The result has `rank` output channels for each group.
        """
        rank = basis.shape[-1]
        kernel = jnp.moveaxis(basis, 0, 1).reshape(*self.window, -1, self.groups * rank)
        dtype = jnp.result_type(read, kernel)
        projected = conv_general_dilated(
            self._channels_last(read).astype(dtype),
            kernel.astype(dtype),
            self.strides,
            self.padding,
            self.dilation,
            self.kernel_dilation,
            dimension_numbers=self._numbers(read.ndim - 1),
            feature_group_count=self.groups,
        )
        return projected.reshape(read.shape[0], -1, self.groups, rank)

    def gradient(
        self, read: Float[Array, "views n *read"], gradients: Float[Array, "views n *written"]
    ) -> Float[Array, "n groups inputs outputs"]:
        """Compute `Σ_t a_t s_tᵀ`.

        It is computed from patches where they are no larger than the gradient: where there are no more positions than
        outputs. Elsewhere one line of the window is read at a time: patches would need the window's area times the
        memory of the images, and on a CPU filling them costs ten times as much as the products.
        """
        rows, images = self.output_rows(_views_last(gradients)), _views_last(read)
        positions, rows = rows.shape[1], _merge_positions(rows, gradients)
        if self._tiled or positions <= self.outputs:
            return outer_products(_merge_positions(self.input_rows(images), read), rows)
        n, shifted = read.shape[1], self._read_window(images)
        width = self.window[-1] if self.window else 1
        lines = []
        for start in range(0, len(shifted), width):
            # Without the barrier XLA fuses the slices into the product, element by element.
            line = jax.lax.optimization_barrier(jnp.stack(shifted[start : start + width], axis=-2))
            line = line.reshape(n, -1, width, self.groups, line.shape[-1] // self.groups)
            product = jnp.einsum("ntgo,ntwgc->ngowc", rows, line)
            lines.append(product.reshape(n, self.groups, self.outputs, -1))
        return jnp.swapaxes(jnp.concatenate(lines, axis=-1), -1, -2)

    def input_rows(self, read: Float[Array, "images *read"]) -> Float[Array, "images positions groups inputs"]:
        """Return the patches as rows, each in the order of the kernel.

        The order is the window, then the channels of the group. Patches are strided slices.
        (`jax.lax.conv_general_dilated_patches` is itself a convolution, with as many output channels as a patch has
        entries, and costs many times as much.)
        """
        area = math.prod(self.window)
        patches = self._tiles(read) if self._tiled else jnp.concatenate(self._read_window(read), axis=-1)
        patches = jax.lax.optimization_barrier(patches)  # XLA would fuse it into products, element by element
        if self.groups == 1:
            return patches.reshape(read.shape[0], -1, 1, self.inputs)
        rows = patches.reshape(read.shape[0], -1, area, self.groups, self.inputs // area)
        return jnp.swapaxes(rows, 2, 3).reshape(read.shape[0], -1, self.groups, self.inputs)

    def _numbers(self, ndim: int) -> jax.lax.ConvDimensionNumbers:
        """Return the axes of images and kernel with channels last."""
        images = (0, ndim - 1, *range(1, ndim - 1))
        return jax.lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)

    def _channels_last(self, read: Array) -> Array:
        """Convert [images, batch, …] to [images · batch, *space, channels]."""
        batch, channels, *space = (k + 1 for k in self.read_axes)
        moved = read.transpose(0, batch, *space, channels)
        return moved.reshape(-1, *moved.shape[2:])

    @property
    def _tiled(self) -> bool:
        """Whether windows lie side by side.

        Patches are then a change of layout. The first layer of a vision transformer is of this kind.
        """
        ones, none = (1,) * len(self.window), ((0, 0),) * len(self.window)
        plain = self.padding == none and self.dilation == ones and self.kernel_dilation == ones
        return plain and tuple(self.strides) == self.window

    def _tiles(self, read: Array) -> Float[Array, "rows *positions patch"]:
        """Return the patches of windows that lie side by side.

        No window reads what remains at the end of an axis.
        """
        images = self._channels_last(read)
        counts = [size // width for size, width in zip(images.shape[1:-1], self.window, strict=True)]
        whole = tuple(slice(count * width) for count, width in zip(counts, self.window, strict=True))
        cut = [size for pair in zip(counts, self.window, strict=True) for size in pair]
        split = images[(slice(None), *whole)].reshape(len(images), *cut, images.shape[-1])
        axes = range(1, split.ndim - 1)
        return split.transpose(0, *axes[::2], *axes[1::2], split.ndim - 1).reshape(len(images), *counts, -1)

    def _read_window(self, read: Array) -> list[Float[Array, "rows *positions channels"]]:
        """Return what each place of the window reads at every position.

        The places are in the order of a kernel.
        """
        images, window = self._channels_last(read), self.window
        edges = [(low, high, factor - 1) for (low, high), factor in zip(self.padding, self.dilation, strict=True)]
        padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        sizes = [
            (total - 1 - factor * (size - 1)) // stride + 1
            for total, factor, size, stride in zip(
                padded.shape[1:-1], self.kernel_dilation, window, self.strides, strict=True
            )
        ]
        slices = []
        for offset in itertools.product(*map(range, window)):
            starts = [place * factor for place, factor in zip(offset, self.kernel_dilation, strict=True)]
            stops = [s + (n - 1) * stride + 1 for s, n, stride in zip(starts, sizes, self.strides, strict=True)]
            steps = (1, *self.strides, 1)
            slices.append(jax.lax.slice(padded, (0, *starts, 0), (len(images), *stops, images.shape[-1]), steps))
        return slices


def matrix_of(name: str, params: dict[str, Any], position: int, kernel: Shape, read: Shape) -> Matrix | None:
    """Return the matrix that an operation multiplies rows with.

    Args:
        name: The primitive.
        params: Its settings.
        position: Number of the operand that is the kernel.
        kernel: Shape of that operand.
        read: Shape of the other operand.

    Returns:
        The matrix; None if the kernel is not a matrix that multiplies rows.
    """
    if name == "dot_general":
        contracted, batch = (tuple(tuple(map(int, axes)) for axes in part) for part in params["dimension_numbers"])
        ours, theirs = (position, 1 - position)
        pair = (contracted[ours], contracted[theirs]), (batch[ours], batch[theirs])
        return Product(kernel, read, *pair, position == 0)
    if position != 1:
        return None
    if name == "canonical_convolution":
        space = range(1, len(read) - 1)
        images = (0, len(read) - 1, *space)
        return Convolution(
            kernel,
            (len(read) - 1, len(read) - 2, *range(len(read) - 2)),
            images,
            images,
            1,
            params["strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
        )
    if name == "conv_general_dilated" and params["batch_group_count"] == 1:
        numbers = params["dimension_numbers"]
        return Convolution(
            kernel,
            tuple(numbers.rhs_spec),
            tuple(numbers.lhs_spec),
            tuple(numbers.out_spec),
            params["feature_group_count"],
            tuple(params["window_strides"]),
            tuple((int(low), int(high)) for low, high in params["padding"]),
            tuple(params["lhs_dilation"]),
            tuple(params["rhs_dilation"]),
        )
    return None
