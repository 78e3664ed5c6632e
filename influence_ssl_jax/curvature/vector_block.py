"""The block of parameters without a weight matrix."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.block import Block, Captured, Path, at, draw_gram, merged
from influence_ssl_jax.curvature.layers import AffineLayer
from influence_ssl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class VectorBlock(Block):
    """Parameters seen as one vector: the affine parameters of a BatchNorm, or leaves that no layer explains."""

    leaves: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    layer: AffineLayer | None

    @property
    def name(self) -> str:
        """Path of the layer, or of the single parameter."""
        return "/".join(self.layer.path if self.layer else self.leaves[0])

    @property
    def paths(self) -> tuple[Path, ...]:
        """The leaves."""
        return self.leaves

    @property
    def size(self) -> int:
        """Sum of the leaves' sizes."""
        return sum(math.prod(shape) for shape in self.shapes)

    def read(self, tree: Params) -> Float[Array, " size"]:
        """The leaves, one after the other."""
        return jnp.concatenate([at(tree, path).reshape(-1) for path in self.leaves])

    def write(self, array: Float[Array, " size"]) -> dict[Path, Array]:
        """The vector cut into its leaves."""
        found, start = {}, 0
        for path, shape in zip(self.leaves, self.shapes, strict=True):
            length = math.prod(shape)
            found[path] = array[start : start + length].reshape(shape)
            start += length
        return found

    def materialised(self, gradients: Captured) -> Float[Array, "n size"]:
        """The gradient vectors."""
        if self.layer is None:
            return gradients.leaves(self.leaves)
        like = gradients.cotangents
        total = jnp.zeros((like.shape[1], self.size), like.dtype)
        for inputs, outputs in gradients.taps(self.layer.path):
            found = self.layer.gradient(merged(inputs), merged(outputs))
            vector = jnp.concatenate([found[path[-1]] for path in self.leaves], axis=-1)
            total = total + jnp.sum(vector.reshape(*inputs.shape[:2], -1), axis=0)
        return total

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """Inner products of the gradient vectors."""
        if not any(map(gradients.reads, self.leaves)):  # nothing to form
            like = gradients.cotangents
            return jnp.zeros((like.shape[1] // draws, draws, draws), like.dtype)
        return draw_gram(self.materialised(gradients), draws)
