"""Define operations on vectors that are pytrees.

They are products, norms, draws, ravelling, partition and sums.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.types import PyTree

Tree = TypeVar("Tree")
Item = TypeVar("Item")
Stack = TypeVar("Stack")

LONG = 256
"""The number of terms from which `sum_and_stack` compensates its rounding.

Without compensation the sum of 16,000 positive numbers in float32 loses 6e-6 of itself.
"""


def dot(left: PyTree, right: PyTree) -> Inexact[Array, ""]:
    """Compute the inner product ⟨left, right⟩ over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b), left, right)
    return jax.tree.reduce(jnp.add, products)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Compute the Euclidean norm over all leaves."""
    return jnp.sqrt(dot(tree, tree))


def scale(factor: Float[Array, ""] | float, tree: PyTree) -> PyTree:
    """Multiply every leaf by `factor`."""
    return jax.tree.map(lambda a: factor * a, tree)


def size(tree: PyTree) -> int:
    """Count the scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def astype(tree: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """Cast every floating-point leaf to `dtype`.

    Flax creates float32 parameters also if JAX is in 64-bit mode, so exact computations need this cast.
    """

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def rademacher_like(key: Key[Array, ""], tree: PyTree) -> PyTree:
    """Draw independent signs ±1 in the structure, shapes and types of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    signs = [randomness.signs(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, signs)


def ravel(tree: PyTree) -> Inexact[Array, " size"]:
    """Join all leaves to one vector, in the order of `jax.tree.leaves`."""
    return ravel_pytree(tree)[0]


def unravel(like: PyTree, vector: Inexact[Array, " size"]) -> PyTree:
    """Split a vector into the structure of `like`; it inverts `ravel`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax import trees
        >>> tree = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(3.0)}
        >>> trees.ravel(tree).tolist()
        [1.0, 2.0, 3.0]
        >>> float(trees.unravel(tree, trees.ravel(tree))["b"])
        3.0
    """
    return ravel_pytree(like)[1](vector)


def ravel_batch(trees: PyTree) -> Inexact[Array, "batch size"]:
    """Join all leaves to a matrix with their leading axis as rows."""
    leaves = jax.tree.leaves(trees)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def partition(tree: PyTree, chosen: Callable[[str, Any], bool]) -> tuple[PyTree, PyTree]:
    """Split a tree into its selected leaves and the others.

    Each of the two results has None in place of the leaves of the other one.

    Args:
        tree: A tree.
        chosen: Whether a leaf is selected, from its name (its path, joined by slashes) and the leaf.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    kept = [chosen(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    first = [leaf if keep else None for keep, (_, leaf) in zip(kept, leaves, strict=True)]
    second = [None if keep else leaf for keep, (_, leaf) in zip(kept, leaves, strict=True)]
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, second)


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Join the two results of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)


def sum_over(
    compute: Callable[[Item], Tree], items: Item, counts: Callable[[Item], Bool[Array, ""]] | None = None
) -> Tree:
    """Sum a tree of arrays over the leading axis of `items`.

    `sum_and_stack` says how.

    Args:
        compute: The tree of one item.
        items: A tree of arrays with one common leading axis.
        counts: Whether an item is computed and added; None if all are.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax import trees
        >>> float(trees.sum_over(lambda item: item**2, jnp.arange(4.0)))
        14.0
    """
    return sum_and_stack(lambda item: (compute(item), ()), items, counts)[0]


def sum_and_stack(
    compute: Callable[[Item], tuple[Tree, Stack]], items: Item, counts: Callable[[Item], Bool[Array, ""]] | None = None
) -> tuple[Tree, Stack]:
    """Sum one tree of arrays over `items`, and stack another.

    Both are over the leading axis of `items`. One item is in memory at a time. A sum of `LONG` items or more is
    compensated (Kahan): its rounding error does not grow with their number, and it needs the memory of a second tree.

    Args:
        compute: The tree to be summed, and the tree to be stacked, of one item.
        items: A tree of arrays with one common leading axis.
        counts: Whether an item is computed and added; None if all are. The others have zeros in the stack.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax import trees
        >>> total, squares = trees.sum_and_stack(lambda item: (item, item**2), jnp.arange(4.0))
        >>> float(total), squares.tolist()
        (6.0, [0.0, 1.0, 4.0, 9.0])
    """
    compute = jax.jit(compute, inline=True)  # traced once, for the shapes and for the loop
    first = jax.tree.map(lambda leaf: leaf[0], items)
    zero, nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, first))

    def add(pair: tuple[Tree, Tree], item: Item) -> tuple[tuple[Tree, Tree], Stack]:
        total, lost = pair
        summed, stacked = compute(item)
        if not long:
            return (jax.tree.map(jnp.add, total, summed), lost), stacked
        part = jax.tree.map(jnp.subtract, summed, lost)
        new = jax.tree.map(jnp.add, total, part)
        return (new, jax.tree.map(lambda new, old, part: (new - old) - part, new, total, part)), stacked

    def step(pair: tuple[Tree, Tree], item: Item) -> tuple[tuple[Tree, Tree], Stack]:
        if counts is None:
            return add(pair, item)
        return jax.lax.cond(counts(item), lambda: add(pair, item), lambda: (pair, nothing))

    long = jax.tree.leaves(items)[0].shape[0] >= LONG
    start = (zero, zero if long else jax.tree.map(lambda _: None, zero))
    (total, _), stack = jax.lax.scan(step, start, items)
    return total, stack


def flatten_stack(stack: Stack) -> Stack:
    """Join the first two axes of every array.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax import trees
        >>> trees.flatten_stack(jnp.asarray([[1, 2], [3, 4]])).tolist()
        [1, 2, 3, 4]
    """
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stack)
