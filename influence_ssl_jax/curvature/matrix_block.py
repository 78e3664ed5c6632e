"""The block of a Dense or Conv layer: its weight matrix."""

import dataclasses
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.block import Block, Captured, Path, at, draw_gram, merged
from influence_ssl_jax.curvature.layer import MatrixLayer
from influence_ssl_jax.types import Params

Pairs: TypeAlias = list[tuple[Array, Array]]
"""(inputs, output-gradients) of every call of a layer."""

ENTRIES = 2**24
"""Entries of patches that are in memory together."""


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
        return self._rows(gradients.taps(self.layer.path))

    def _rows(self, pairs: Pairs) -> tuple[Array, Array]:
        inputs = [_by_example(self.layer.input_rows(merged(a)), a) for a, _ in pairs]
        outputs = [_by_example(self.layer.output_rows(merged(s)), s) for _, s in pairs]
        return jnp.concatenate(inputs, axis=1), jnp.concatenate(outputs, axis=1)

    def projected(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """`leftᵀ G right` per example, `G = Σ_t ā_t s_tᵀ` never formed."""
        pairs = gradients.taps(self.layer.path)
        inputs = [_by_example(self.layer.project_inputs(merged(a), left), a) for a, _ in pairs]
        outputs = [
            _by_example(jnp.einsum("ntgo,gol->ntgl", self.layer.output_rows(merged(s)), right), s) for _, s in pairs
        ]
        return _contract(jnp.concatenate(inputs, axis=1), jnp.concatenate(outputs, axis=1))

    def materialised(self, gradients: Captured) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` per example."""
        return _contract(*self.rows(gradients))

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """By the gradients themselves, or by the rows' inner products (ghost norms), whichever is less work.

        Patches, and gradients of this one layer, exist for a few examples at a time: about ENTRIES numbers, however
        large the batch.
        """
        pairs, draws = gradients.taps(self.layer.path), gradients.draws
        batch = pairs[0][1].shape[1] // draws
        positions = sum(s.shape[0] * math.prod(s.shape[2:-1]) for _, s in pairs)
        at_once = max(1, ENTRIES // (draws * positions * self.layer.groups * self.layer.inputs))
        if at_once >= batch:
            return self._gram(pairs, draws)

        def split(array: Array) -> Array:
            views, _, *rest = array.shape
            return jnp.moveaxis(array.reshape(views, draws, batch, *rest), 2, 0)

        return jax.lax.map(lambda one: self._gram(one, draws)[0], jax.tree.map(split, pairs), batch_size=at_once)

    def _gram(self, pairs: Pairs, draws: int) -> Float[Array, "batch draws draws"]:
        inputs, outputs = self._rows(pairs)
        positions = inputs.shape[1]
        if positions * (self.layer.inputs + self.layer.outputs) < self.layer.inputs * self.layer.outputs:
            a, s = (x.reshape(draws, -1, *x.shape[1:]) for x in (inputs, outputs))
            like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
            like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
            return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))
        return draw_gram(_contract(inputs, outputs), draws)


def _by_example(rows: Array, like: Array) -> Array:
    """[views · n, positions, …] → [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _contract(inputs: Array, outputs: Array) -> Float[Array, "n groups inputs outputs"]:
    return jnp.einsum("ntgi,ntgo->ngio", inputs, outputs)
