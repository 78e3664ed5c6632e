"""The block of a Dense or Conv layer: its weight matrix."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.block import Block, Captured, Path, at, draw_gram, merged
from influence_ssl_jax.curvature.layer import MatrixLayer
from influence_ssl_jax.types import Params


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
        pairs = gradients.taps(self.layer.path)
        inputs = [_by_example(self.layer.input_rows(merged(a)), a) for a, _ in pairs]
        outputs = [_by_example(self.layer.output_rows(merged(s)), s) for _, s in pairs]
        return self._positions(gradients, inputs, self.layer.inputs), self._positions(
            gradients, outputs, self.layer.outputs
        )

    def projected(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """`leftᵀ G right` per example, `G = Σ_t ā_t s_tᵀ` never formed."""
        pairs = gradients.taps(self.layer.path)
        inputs = [_by_example(self.layer.project_inputs(merged(a), left), a) for a, _ in pairs]
        outputs = [
            _by_example(jnp.einsum("ntgo,gol->ntgl", self.layer.output_rows(merged(s)), right), s) for _, s in pairs
        ]
        return _contract(
            self._positions(gradients, inputs, left.shape[-1]), self._positions(gradients, outputs, right.shape[-1])
        )

    def materialised(self, gradients: Captured) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` per example."""
        like, layer = gradients.cotangents, self.layer
        total = jnp.zeros((like.shape[1], layer.groups, layer.inputs, layer.outputs), like.dtype)
        for inputs, outputs in gradients.taps(layer.path):
            found = layer.gradient(merged(inputs), merged(outputs))
            total = total + jnp.sum(found.reshape(like.shape[0], *total.shape), axis=0)
        return total

    def inner_products(self, gradients: Captured, draws: int) -> Float[Array, "examples {draws} {draws}"]:
        """By the gradients themselves, or by the rows' inner products (ghost norms), whichever is less work."""
        pairs = gradients.taps(self.layer.path)
        positions = sum(self.layer.output_rows(merged(s)).shape[1] * s.shape[0] for _, s in pairs)
        if draws * positions * (self.layer.inputs + self.layer.outputs) < self.layer.inputs * self.layer.outputs:
            a, s = (x.reshape(draws, x.shape[0] // draws, *x.shape[1:]) for x in self.rows(gradients))
            like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
            like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
            return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))
        return draw_gram(self.materialised(gradients), draws)

    def _positions(
        self, gradients: Captured, calls: list[Array], width: int
    ) -> Float[Array, "n positions groups {width}"]:
        """The rows of all calls; no position at all, hence gradients of zero, where the layer is not called."""
        like = gradients.cotangents
        return jnp.concatenate([jnp.zeros((like.shape[1], 0, self.layer.groups, width), like.dtype), *calls], axis=1)


def _by_example(rows: Array, like: Array) -> Array:
    """[views · n, positions, …] → [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _contract(inputs: Array, outputs: Array) -> Float[Array, "n groups inputs outputs"]:
    return jnp.einsum("ntgi,ntgo->ngio", inputs, outputs)
