"""The block of a Dense or Conv layer: its weight matrix."""

import dataclasses
import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.block import Block, Captured, Path, at, draw_gram, merged
from influence_ssl_jax.curvature.layer import MatrixLayer, outer_products
from influence_ssl_jax.types import Params

Pairs: TypeAlias = list[tuple[Array, Array]]
"""(inputs, output-gradients) of every call of a layer, leading axes [views, n]."""

ENTRIES = 2**24
"""Entries of patches or gradients of one layer that are in memory together."""

SLOWER = 3
"""What a multiplication takes where gradients are formed, in those of a projection (1.5 to 4 on two CPU cores): small
products, one an image, against one convolution."""


@dataclasses.dataclass(frozen=True)
class MatrixBlock(Block):
    """The weight matrix (and bias) of a Dense or Conv layer, [groups, inputs, outputs]."""

    layer: MatrixLayer

    @property
    def name(self) -> str:
        """Path of the layer."""
        return "/".join(self.layer.path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Kernel and bias."""
        return tuple((*self.layer.path, leaf) for leaf in self.layer.leaves)

    @property
    def size(self) -> int:
        """Number of entries of the matrix."""
        return self.layer.groups * self.layer.inputs * self.layer.outputs

    def read(self, tree: Params) -> Float[Array, "groups inputs outputs"]:
        """The layer's matrix."""
        return self.layer.to_matrix({path[-1]: at(tree, path) for path in self.paths})

    def write(self, array: Float[Array, "groups inputs outputs"]) -> dict[Path, Array]:
        """Kernel and bias of a matrix."""
        return {(*self.layer.path, leaf): value for leaf, value in self.layer.from_matrix(array).items()}

    def rows(
        self, gradients: Captured
    ) -> tuple[Float[Array, "n positions groups inputs"], Float[Array, "n positions groups outputs"]]:
        """Inputs `ā` and output-gradients `s` at every position of every call and view."""
        inputs, outputs = self._rows(gradients.taps(self.layer.path))
        return self._positions(gradients, inputs, self.layer.inputs), self._positions(
            gradients, outputs, self.layer.outputs
        )

    def projected(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """`leftᵀ G right` per example, `G = Σ_t ā_t s_tᵀ` formed only where that is less work.

        It is with a large basis and many positions: then G goes through the bases once, instead of every position.
        """
        pairs, rank, other = gradients.taps(self.layer.path), left.shape[-1], right.shape[-1]
        if not pairs:
            return _nothing(gradients, self.layer.groups, rank, other)
        inputs, outputs, positions = self.layer.inputs, self.layer.outputs, _positions_of(pairs)
        by_position = positions * (inputs * rank + outputs * other + rank * other)
        if SLOWER * positions * inputs * outputs + (inputs + other) * rank * outputs < by_position:
            return jnp.einsum("gik,ngio,gol->ngkl", left, self._gradient(pairs), right)
        calls = [
            outer_products(self.layer.project_inputs(merged(a), left), self.layer.project_outputs(merged(s), right))
            for a, s in pairs
        ]
        return _total(calls, pairs)

    def materialised(self, gradients: Captured) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` per example; zero where the network does not call the layer."""
        pairs = gradients.taps(self.layer.path)
        return self._gradient(pairs) if pairs else _nothing(gradients, *self._shape)

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """By the gradients themselves, or by the rows' inner products (ghost norms), whichever is less work.

        Either exists for a few examples at a time: about ENTRIES numbers, however large the batch.
        """
        pairs, batch = gradients.taps(self.layer.path), gradients.cotangents.shape[1] // draws
        if not pairs:  # the network does not call the layer
            return jnp.zeros((batch, draws, draws), gradients.cotangents.dtype)
        layer = self.layer
        positions = draws * _positions_of(pairs)
        ghost = positions * (layer.inputs + layer.outputs) < layer.inputs * layer.outputs
        formed = 0 if ghost else draws * pairs[0][1].shape[0] * layer.inputs * layer.outputs
        entries = layer.groups * (positions * layer.inputs + formed)

        def of_examples(pairs: Pairs) -> Float[Array, "examples draws draws"]:
            return self._ghost_gram(pairs, draws) if ghost else draw_gram(self._gradient(pairs), draws)

        if entries * batch <= ENTRIES:
            return of_examples(pairs)

        def by_example(array: Array) -> Array:
            views, _, *rest = array.shape
            return jnp.moveaxis(array.reshape(views, draws, batch, *rest), 2, 0)

        return jax.lax.map(
            lambda one: of_examples(one)[0], jax.tree.map(by_example, pairs), batch_size=max(1, ENTRIES // entries)
        )

    def _ghost_gram(self, pairs: Pairs, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        a, s = (jnp.concatenate(rows, axis=1) for rows in self._rows(pairs))
        a, s = (x.reshape(draws, x.shape[0] // draws, *x.shape[1:]) for x in (a, s))
        like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
        like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
        return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))

    def _gradient(self, pairs: Pairs) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` over all calls and views."""
        return _total([self.layer.gradient(merged(a), merged(s)) for a, s in pairs], pairs)

    def _rows(self, pairs: Pairs) -> tuple[list[Array], list[Array]]:
        """Rows of every call, views and positions merged."""
        inputs = [_by_example(self.layer.input_rows(merged(a)), a) for a, _ in pairs]
        return inputs, [_by_example(self.layer.output_rows(merged(s)), s) for _, s in pairs]

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.layer.groups, self.layer.inputs, self.layer.outputs

    def _positions(
        self, gradients: Captured, calls: list[Array], width: int
    ) -> Float[Array, "n positions groups {width}"]:
        """The rows of all calls; no position at all, hence gradients of zero, where the layer is not called."""
        like = gradients.cotangents
        return jnp.concatenate([jnp.zeros((like.shape[1], 0, self.layer.groups, width), like.dtype), *calls], axis=1)


def _positions_of(pairs: Pairs) -> int:
    """Of one example, in all calls and views."""
    return sum(s.shape[0] * math.prod(s.shape[2:-1]) for _, s in pairs)


def _by_example(rows: Array, like: Array) -> Array:
    """[views · n, positions, …] → [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _nothing(gradients: Captured, *shape: int) -> Float[Array, "n *shape"]:
    """The gradients of a layer that the network does not call."""
    return jnp.zeros((gradients.cotangents.shape[1], *shape), gradients.cotangents.dtype)


def _total(calls: list[Array], pairs: Pairs) -> Float[Array, "n groups inputs outputs"]:
    """The sum over calls and views of what is computed image by image."""
    split = [one.reshape(*s.shape[:2], *one.shape[1:]) for one, (_, s) in zip(calls, pairs, strict=True)]
    return functools.reduce(jnp.add, [jnp.sum(one, axis=0) for one in split])
