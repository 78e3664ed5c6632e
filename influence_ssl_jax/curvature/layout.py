"""Changes of layout between a parameter and the operation that uses it, and how each is undone."""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Shape: TypeAlias = tuple[int, ...]

SAME = ("convert_element_type", "copy", "copy_p", "sharding_constraint", "name", "pvary", "reduce_precision")
LAYOUTS = (*SAME, "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev", "slice", "index")
"""Primitives that only move entries; `index` takes one step of a loop's leading axis."""

Kind: TypeAlias = Literal["same", "reshape", "broadcast", "transpose", "rev", "slice", "index"]


@dataclasses.dataclass(frozen=True)
class LayoutStep:
    """One change of layout, static and comparable.

    Attributes:
        kind: Which change.
        before: Shape before it.
        after: Shape after it.
        data: Permutation, reversed axes, axes kept by a broadcast, (start, stop, stride) of a slice, or the index.
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
        """The changed array, NumPy's or JAX's."""
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
        """The transposed map: the inverse where the change is bijective."""
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
    """The change of layout that a primitive makes, None where it makes another change."""
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
    """A parameter, or one step of a loop over its leading axes, seen as a matrix [groups, inputs, outputs].

    Attributes:
        lead: Sizes of the leading axes that loops go over: the parameter is a stack of matrices.
        steps: Changes of layout from one step's array to the matrix, all bijective.
    """

    lead: Shape
    steps: tuple[LayoutStep, ...]

    def to_matrix(self, leaf: Array) -> Array:
        """[*lead, …] → [steps · groups, inputs, outputs]."""
        stack = leaf.reshape(-1, *self.steps[0].before)
        matrices = jax.vmap(self._forward)(stack)
        return matrices.reshape(-1, *matrices.shape[2:])

    def from_matrix(self, matrix: Array) -> Array:
        """The inverse of `to_matrix`."""
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


def natural(shape: Shape) -> Layout:
    """A parameter as one matrix: the last axis writes, all others read."""
    flat = (1, math.prod(shape[:-1]), shape[-1])
    return Layout((), (LayoutStep("reshape", shape, flat),))
