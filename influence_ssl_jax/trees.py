"""Vectors that are pytrees: inner product, norm, random draws, ravelling, two complementary parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.types import PyTree


def dot(left: PyTree, right: PyTree) -> Inexact[Array, ""]:
    """Inner product ⟨left, right⟩ over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b), left, right)
    return jax.tree.reduce(jnp.add, products)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(tree, tree))


def axpy(scale: Float[Array, ""] | float, x: PyTree, y: PyTree) -> PyTree:
    """Scale · x + y, leaf by leaf."""
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def scale(factor: Float[Array, ""] | float, tree: PyTree) -> PyTree:
    """Factor · tree, leaf by leaf."""
    return jax.tree.map(lambda a: factor * a, tree)


def size(tree: PyTree) -> int:
    """Number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def astype(tree: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """Cast every floating-point leaf; flax creates float32 parameters even under x64, so exact tests cast."""

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def normal_like(key: Key[Array, ""], tree: PyTree) -> PyTree:
    """Independent standard normal entries in the structure, shapes and dtypes of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [randomness.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def rademacher_like(key: Key[Array, ""], tree: PyTree) -> PyTree:
    """Independent ±1 entries in the structure, shapes and dtypes of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [randomness.signs(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def ravel(tree: PyTree) -> Inexact[Array, " size"]:
    """All leaves as one vector, in the order of `jax.tree.leaves`."""
    return ravel_pytree(tree)[0]


def unravel(like: PyTree, vector: Inexact[Array, " size"]) -> PyTree:
    """The inverse of `ravel`: `vector` in the structure of `like`."""
    return ravel_pytree(like)[1](vector)


def ravel_batch(trees: PyTree) -> Inexact[Array, "batch size"]:
    """A tree whose leaves share a leading axis, as one row per entry of that axis."""
    leaves = jax.tree.leaves(trees)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def partition(tree: PyTree, chosen: Callable[[str, Any], bool]) -> tuple[PyTree, PyTree]:
    """Split a tree into its chosen leaves and the others, each with None where the other one has a leaf.

    Args:
        tree: Any tree.
        chosen: Whether a leaf is, by its name (the path joined by slashes) and itself.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    kept = [chosen(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    first = [leaf if keep else None for keep, (_, leaf) in zip(kept, leaves, strict=True)]
    second = [None if keep else leaf for keep, (_, leaf) in zip(kept, leaves, strict=True)]
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, second)


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Put the two parts of `partition` together again."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
