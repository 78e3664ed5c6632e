"""The per-example gradients of a batch, never materialised unless asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.blocks import Blocks, Captured, Path, leaf_paths
from influence_ssl_jax.curvature.taps import Tap, record
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.types import Frozen, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExampleGradients(Captured):
    """`g_n = Σ_v J_vnᵀ c_vn`: what the cotangents of each example's embeddings pull back to.

    Several draws of the same examples stand one after the other: n = draws · batch, draw-major.

    Attributes:
        params: Where the gradients are taken.
        frozen: Running statistics.
        images: Views of the examples.
        cotangents: Gradient of the examples' losses with respect to their embeddings.
        network: What embeds.
        draws: How many draws of each example there are.
    """

    params: Params
    frozen: Frozen
    images: Float[Array, "views n height width channels"]
    cotangents: Float[Array, "views n embedding"]
    network: Network = dataclasses.field(metadata={"static": True})
    draws: int = dataclasses.field(default=1, metadata={"static": True})

    def full(self) -> Params:
        """Every gradient whole, leaves [n, …]: for small nets and dense backends."""

        def one(images: Array, cotangents: Array) -> Params:
            _, backward = jax.vjp(lambda params: self.network(params, self.frozen, images), self.params)
            return backward(cotangents)[0]

        return jax.vmap(one, in_axes=1)(self.images, self.cotangents)

    def along(self, directions: Params) -> Float[Array, "n rank"]:
        """⟨g_n, q_k⟩ for directions with a leading rank axis, by forward mode: one pass a direction, any network."""
        views, n = self.cotangents.shape[:2]
        images = self.images.reshape(views * n, *self.images.shape[2:])
        _, push = jax.linearize(lambda params: self.network(params, self.frozen, images), self.params)

        def one(direction: Params) -> Float[Array, " n"]:
            return jnp.sum(push(direction).reshape(self.cotangents.shape) * self.cotangents, axis=(0, 2))

        return jax.lax.map(one, directions).T

    def summed(self) -> Params:
        """Σ_n g_n, one ordinary backward pass."""
        views, n = self.cotangents.shape[:2]
        images = self.images.reshape(views * n, *self.images.shape[2:])
        _, backward = jax.vjp(lambda params: self.network(params, self.frozen, images), self.params)
        return backward(self.cotangents.reshape(views * n, -1))[0]

    def gram(self, blocks: Blocks) -> Float[Array, "batch draws draws"]:
        """⟨g_k, g_l⟩ over all pairs of draws of each example; its diagonal are the squared norms."""
        return functools.reduce(jnp.add, [block.gram(self) for block in blocks])

    def squared_norms(self, blocks: Blocks) -> Float[Array, " n"]:
        """‖g_n‖² of every draw."""
        return functools.reduce(jnp.add, [block.squared_norms(self) for block in blocks])

    def taps(self, path: Path) -> list[tuple[Array, Array]]:
        """(inputs, output-gradients) of every call of the layer at `path`, leading axes [views, n]."""
        split = self.cotangents.shape[:2]
        return [
            (tap.inputs.reshape(*split, *tap.inputs.shape[1:]), tap.gradients.reshape(*split, *tap.gradients.shape[1:]))
            for tap in self._captured
            if tap.layer.path == path
        ]

    def reads(self, path: Path) -> bool:
        """Whether the network reads the parameter at `path`."""
        return path in self._read

    def leaves(self, paths: tuple[Path, ...]) -> Float[Array, "n size"]:
        """The gradients of single parameters, formed one example at a time."""
        flat, structure = jax.tree.flatten(self.params)
        places = [leaf_paths(self.params).index(path) for path in paths]

        def one(images: Array, cotangents: Array) -> Float[Array, " size"]:
            def embed(chosen: list[Array]) -> Array:
                held = list(flat)
                for place, value in zip(places, chosen, strict=True):
                    held[place] = value
                return self.network(jax.tree.unflatten(structure, held), self.frozen, images)

            _, backward = jax.vjp(embed, [flat[place] for place in places])
            return jnp.concatenate([leaf.reshape(-1) for leaf in backward(cotangents)[0]])

        return jax.vmap(one, in_axes=1)(self.images, self.cotangents)

    @functools.cached_property
    def _read(self) -> frozenset[Path]:
        """The parameters that appear in the traced network."""
        traced = jax.make_jaxpr(lambda params: self.network(params, self.frozen, self.images[:, 0]))(self.params).jaxpr
        used = {name for equation in traced.eqns for name in equation.invars if isinstance(name, Var)}
        return frozenset(p for p, name in zip(leaf_paths(self.params), traced.invars, strict=True) if name in used)

    @functools.cached_property
    def _captured(self) -> list[Tap]:
        """Taps of every layer, leading axis [views · n]: one batched backward pass, shared by all who ask."""
        views, n = self.cotangents.shape[:2]
        images = self.images.reshape(views * n, *self.images.shape[2:])
        _, pullback = record(self.network, self.params, self.frozen, images)
        return pullback(self.cotangents.reshape(views * n, -1))
