"""Coordinates of gradients, vectors and their norms, block by block, in a basis of each block."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.blocks import Block, Blocks, MatrixBlock, Unexplained, discover
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params

Bases: TypeAlias = dict[str, tuple[Array, ...]]
"""Per block: (B_in, B_out) of a weight matrix, [groups, size, rank]; (B,) of a vector; () where entries are their own
coordinates."""

Coordinates: TypeAlias = dict[str, Float[Array, "n _"]]
Scalars: TypeAlias = dict[str, Float[Array, ""]]


def discover_blocks(problem: Problem, unexplained: Unexplained) -> Blocks:
    """The layers of the problem's network."""
    shape = problem.batches.image.shape[2:]
    return discover(problem.objective.network, problem.params, problem.frozen, shape, unexplained)


def project(gradients: ExampleGradients, blocks: Blocks, bases: Bases) -> Coordinates:
    """`Bᵀ g` of every block, flattened; of a weight matrix without forming its gradient."""

    def of(part: ExampleGradients) -> dict[str, Float[Array, "batch draws _"]]:
        found = {}
        for block in blocks:
            if isinstance(block, MatrixBlock) and bases[block.name]:
                rows = _flat(block.projected(part, *bases[block.name]))
            else:
                rows = into(block.materialised(part), bases[block.name])
            found[block.name] = jnp.swapaxes(rows.reshape(part.draws, -1, rows.shape[1]), 0, 1)
        return found

    found = gradients.by_example(of, blocks)
    return {name: jnp.swapaxes(rows, 0, 1).reshape(-1, rows.shape[2]) for name, rows in found.items()}


def project_trees(trees: Params, blocks: Blocks, bases: Bases) -> Coordinates:
    """`Bᵀ g` of every block of whole gradients with a leading axis."""
    return {block.name: into(jax.vmap(block.read)(trees), bases[block.name]) for block in blocks}


def squared_norms(gradients: ExampleGradients, blocks: Blocks) -> Scalars:
    """`Σ_i ‖g_i‖²` of every block."""

    def of(part: ExampleGradients) -> Scalars:
        return {block.name: jnp.sum(block.squared_norms(part)) for block in blocks}

    return gradients.total(of, blocks)


def squared_norms_of_trees(trees: Params, blocks: Blocks) -> Scalars:
    """`Σ_i ‖g_i‖²` of every block of whole gradients with a leading axis."""
    return {block.name: jnp.sum(jax.vmap(block.read)(trees) ** 2) for block in blocks}


def inner_products(block: Block, left: ExampleGradients, right: ExampleGradients) -> Float[Array, "left right"]:
    """`⟨g_i, g_j⟩` between two batches' gradients of one block."""
    return _flat(block.materialised(left)) @ _flat(block.materialised(right)).T


def into(parts: Float[Array, "n *shape"], bases: tuple[Array, ...]) -> Float[Array, "n features"]:
    """`Bᵀ` of blocks in their own shape."""
    if not bases:
        return _flat(parts)
    if len(bases) == 1:
        return parts @ bases[0]
    return _flat(jnp.einsum("gik,ngio,gol->ngkl", bases[0], parts, bases[1]))


def out_of(
    features: Float[Array, " features"], bases: tuple[Array, ...], like: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`B` of coordinates: a block in its own shape, that of `like`."""
    if not bases:
        return features.reshape(like.shape)
    if len(bases) == 1:
        return bases[0] @ features
    left, right = bases
    core = features.reshape(left.shape[0], left.shape[2], right.shape[2])
    return jnp.einsum("gik,gkl,gol->gio", left, core, right)


def _flat(parts: Array) -> Float[Array, "n features"]:
    return parts.reshape(parts.shape[0], -1)
