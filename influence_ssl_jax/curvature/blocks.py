"""The parameters of a network cut into blocks, one per layer: what projections, factors and norms work on."""

import abc
import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.layers import AffineLayer, Layer, MatrixLayer
from influence_ssl_jax.curvature.taps import record
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.types import Frozen, Params, PyTree

Unexplained: TypeAlias = Literal["error", "materialise"]
"""What to do with parameters that no known layer explains: refuse, or form their per-example gradients one by one."""

Path: TypeAlias = tuple[str, ...]


class Captured(abc.ABC):
    """The per-example gradients of a batch, as far as blocks read them (`gradients.ExampleGradients`)."""

    draws: int

    @abc.abstractmethod
    def taps(self, path: Path) -> list[tuple[Array, Array]]:
        """(inputs, output-gradients) of every call of the layer at `path`, leading axes [views, n]."""

    @abc.abstractmethod
    def leaves(self, paths: tuple[Path, ...]) -> Float[Array, "n size"]:
        """The gradients of single parameters, formed one example at a time."""


class Block(abc.ABC):
    """A group of parameters, seen as `shape`; subclasses are frozen dataclasses, static under `jit`."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Path of the block, joined by slashes."""

    @property
    @abc.abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The parameters that belong to the block."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of scalar parameters."""

    @abc.abstractmethod
    def read(self, tree: Params) -> Float[Array, "*shape"]:
        """The block of a tree of the parameters' structure."""

    @abc.abstractmethod
    def write(self, array: Float[Array, "*shape"]) -> dict[Path, Array]:
        """The inverse of `read`: values by path."""

    @abc.abstractmethod
    def materialised(self, gradients: Captured) -> Float[Array, "n *shape"]:
        """Every example's gradient of the block, whole."""

    @abc.abstractmethod
    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """⟨g_k, g_l⟩ over all pairs of draws of each example."""


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
        return self.layer.to_matrix({path[-1]: _at(tree, path) for path in self.paths})

    def write(self, array: Float[Array, "groups inputs outputs"]) -> dict[Path, Array]:
        """Kernel and bias of a matrix."""
        return {(*self.layer.path, leaf): value for leaf, value in self.layer.from_matrix(array).items()}

    def rows(
        self, gradients: Captured
    ) -> tuple[Float[Array, "n positions groups inputs"], Float[Array, "n positions groups outputs"]]:
        """Inputs `ā` and output-gradients `s` at every position of every call and view."""
        pairs = gradients.taps(self.layer.path)
        inputs = [_by_example(self.layer.input_rows(_merged(a)), a) for a, _ in pairs]
        outputs = [_by_example(self.layer.output_rows(_merged(s)), s) for _, s in pairs]
        return jnp.concatenate(inputs, axis=1), jnp.concatenate(outputs, axis=1)

    def projected(
        self, gradients: Captured, left: Float[Array, "groups inputs k"], right: Float[Array, "groups outputs l"]
    ) -> Float[Array, "n groups k l"]:
        """`leftᵀ G right` per example, `G = Σ_t ā_t s_tᵀ` never formed."""
        pairs = gradients.taps(self.layer.path)
        inputs = [_by_example(self.layer.project_inputs(_merged(a), left), a) for a, _ in pairs]
        outputs = [
            _by_example(jnp.einsum("ntgo,gol->ntgl", self.layer.output_rows(_merged(s)), right), s) for _, s in pairs
        ]
        return _contract(jnp.concatenate(inputs, axis=1), jnp.concatenate(outputs, axis=1))

    def materialised(self, gradients: Captured) -> Float[Array, "n groups inputs outputs"]:
        """`Σ_t ā_t s_tᵀ` per example."""
        return _contract(*self.rows(gradients))

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """By the gradients themselves, or by the rows' inner products (ghost norms), whichever is less work."""
        draws = gradients.draws
        inputs, outputs = self.rows(gradients)
        positions = inputs.shape[1]
        if positions * (self.layer.inputs + self.layer.outputs) < self.layer.inputs * self.layer.outputs:
            a, s = (x.reshape(draws, -1, *x.shape[1:]) for x in (inputs, outputs))
            like_inputs = jnp.einsum("kbtgi,lbugi->bklgtu", a, a)
            like_outputs = jnp.einsum("kbtgo,lbugo->bklgtu", s, s)
            return jnp.sum(like_inputs * like_outputs, axis=(3, 4, 5))
        return draw_gram(_contract(inputs, outputs), draws)


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
        return sum(functools.reduce(lambda a, b: a * b, shape, 1) for shape in self.shapes)

    def read(self, tree: Params) -> Float[Array, " size"]:
        """The leaves, one after the other."""
        return jnp.concatenate([_at(tree, path).reshape(-1) for path in self.leaves])

    def write(self, array: Float[Array, " size"]) -> dict[Path, Array]:
        """The vector cut into its leaves."""
        found, start = {}, 0
        for path, shape in zip(self.leaves, self.shapes, strict=True):
            length = functools.reduce(lambda a, b: a * b, shape, 1)
            found[path] = array[start : start + length].reshape(shape)
            start += length
        return found

    def materialised(self, gradients: Captured) -> Float[Array, "n size"]:
        """The gradient vectors."""
        if self.layer is None:
            return gradients.leaves(self.leaves)
        total = jnp.zeros(())
        for inputs, outputs in gradients.taps(self.layer.path):
            found = self.layer.gradient(_merged(inputs), _merged(outputs))
            vector = jnp.concatenate([found[path[-1]] for path in self.leaves], axis=-1)
            total = total + jnp.sum(vector.reshape(*inputs.shape[:2], -1), axis=0)
        return total

    def gram(self, gradients: Captured) -> Float[Array, "batch draws draws"]:
        """Inner products of the gradient vectors."""
        return draw_gram(self.materialised(gradients), gradients.draws)


Blocks: TypeAlias = tuple[MatrixBlock | VectorBlock, ...]


def discover(
    network: Network, params: Params, frozen: Frozen, image_shape: tuple[int, ...], unexplained: Unexplained = "error"
) -> Blocks:
    """Cut the parameters that `network` reads into blocks, one per layer, in the order of the calls.

    Raises:
        StructureError: A parameter belongs to no known layer (or is not read at all) and `unexplained` is "error".
    """
    dtype = jax.tree.leaves(params)[0].dtype
    layers: list[Layer] = []

    def trace(images: Array) -> Array:
        embeddings, pullback = record(network, params, frozen, images)
        layers.extend(tap.layer for tap in pullback(embeddings))
        return embeddings

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, *image_shape), dtype))
    blocks: dict[Path, MatrixBlock | VectorBlock] = {}
    for layer in layers:
        if isinstance(layer, MatrixLayer):
            blocks[layer.path] = MatrixBlock(layer)
        elif isinstance(layer, AffineLayer):
            leaves = tuple((*layer.path, name) for name in layer.leaves)
            blocks[layer.path] = VectorBlock(leaves, tuple(_at(params, path).shape for path in leaves), layer)
    explained = {path for block in blocks.values() for path in block.paths}
    rest = [path for path in leaf_paths(params) if path not in explained]
    if rest and unexplained == "error":
        raise StructureError(
            f"No known layer (Dense, Conv, BatchNorm) explains the parameters {', '.join('/'.join(p) for p in rest)}. "
            "Leave out parameters that the network does not read, or ask for unexplained='materialise', which forms "
            "their per-example gradients one by one."
        )
    loose = tuple(VectorBlock((path,), (_at(params, path).shape,), None) for path in rest)
    return (*blocks.values(), *loose)


def draw_gram(gradients: Float[Array, "n *shape"], draws: int) -> Float[Array, "batch draws draws"]:
    """Inner products of the draws of each example, from vectors that stand draw-major."""
    vectors = gradients.reshape(draws, gradients.shape[0] // draws, -1)
    return jnp.einsum("kbf,lbf->bkl", vectors, vectors)


def leaf_paths(params: Params) -> list[Path]:
    """The path of every parameter."""
    return [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def assemble(like: Params, blocks: Blocks, arrays: dict[str, Array]) -> Params:
    """The tree whose blocks are `arrays`, by block name."""
    values = {path: value for block in blocks for path, value in block.write(arrays[block.name]).items()}
    flat = [values[path] for path in leaf_paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), flat)


def check_structure(like: Params, vector: PyTree) -> None:
    """Refuse a vector that has not the structure and shapes of the parameters.

    Raises:
        StructureError: Another structure, or another shape at some leaf.
    """
    wanted, got = jax.tree.structure(like), jax.tree.structure(vector)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)], [jnp.shape(leaf) for leaf in jax.tree.leaves(vector)]
    if wanted != got or shapes[0] != shapes[1]:
        raise StructureError(
            f"A vector must have the structure and shapes of the parameters ({trees.size(like)} scalars in {wanted}), "
            f"got {got} with shapes {shapes[1]}."
        )


def _at(tree: PyTree, path: Path) -> Array:
    return functools.reduce(lambda node, name: node[name], path, tree)


def _merged(array: Array) -> Array:
    """[views, n, …] → [views · n, …]."""
    return array.reshape(-1, *array.shape[2:])


def _by_example(rows: Array, like: Array) -> Array:
    """[views · n, positions, …] → [n, views · positions, …]."""
    views, n = like.shape[:2]
    split = jnp.moveaxis(rows.reshape(views, n, *rows.shape[1:]), 0, 1)
    return split.reshape(n, -1, *rows.shape[2:])


def _contract(inputs: Array, outputs: Array) -> Float[Array, "n groups inputs outputs"]:
    return jnp.einsum("ntgi,ntgo->ngio", inputs, outputs)
