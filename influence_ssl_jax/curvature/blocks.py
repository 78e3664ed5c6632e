"""The parameters of a network cut into blocks, one per layer: what projections, factors and norms work on."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.block import Block, Captured, Path, at
from influence_ssl_jax.curvature.layers import AffineLayer, Layer, MatrixLayer
from influence_ssl_jax.curvature.matrix_block import MatrixBlock
from influence_ssl_jax.curvature.taps import record
from influence_ssl_jax.curvature.vector_block import VectorBlock
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.types import Frozen, Params, PyTree

__all__ = [
    "Block",
    "Blocks",
    "Captured",
    "MatrixBlock",
    "Path",
    "Unexplained",
    "VectorBlock",
    "assemble",
    "check_structure",
    "discover",
    "leaf_paths",
]

Blocks: TypeAlias = tuple[MatrixBlock | VectorBlock, ...]

Unexplained: TypeAlias = Literal["error", "materialise"]
"""What to do with parameters that no known layer explains: refuse, or form their per-example gradients one by one."""


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
            blocks[layer.path] = VectorBlock(leaves, tuple(at(params, path).shape for path in leaves), layer)
    explained = {path for block in blocks.values() for path in block.paths}
    rest = [path for path in leaf_paths(params) if path not in explained]
    if rest and unexplained == "error":
        raise StructureError(
            f"No known layer (Dense, Conv, BatchNorm) explains the parameters {', '.join('/'.join(p) for p in rest)}. "
            "Leave out parameters that the network does not read, or ask for unexplained='materialise', which forms "
            "their per-example gradients one by one."
        )
    loose = tuple(VectorBlock((path,), (at(params, path).shape,), None) for path in rest)
    return (*blocks.values(), *loose)


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
