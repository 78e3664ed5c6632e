"""Eigenbases of Kronecker products A ⊗ S, taken from the factors alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax import randomness
from influence_ssl_jax.randomness import Stream


def eigenpairs(
    matrix: Float[Array, "size size"], rank: int | None = None
) -> tuple[Float[Array, " rank"], Float[Array, "size rank"]]:
    """The `rank` largest eigenvalues, descending and not below zero, of a second moment, and their eigenvectors.

    Taken apart in float64 whatever the dtype of the matrix: single precision mixes eigenvectors of close eigenvalues,
    and products of two factors' eigenvalues span twice as many orders of magnitude as either.
    """
    rank = matrix.shape[0] if rank is None else min(rank, matrix.shape[0])
    with jax.enable_x64(True):
        symmetric = jax.lax.convert_element_type(matrix, jnp.float64)
        values, vectors = jnp.linalg.eigh((symmetric + symmetric.T) / 2)
        return _largest(values, vectors, rank, matrix.dtype)


def eigenpairs_of_rank(
    matrix: Float[Array, "size size"], rank: int | None
) -> tuple[Float[Array, " kept"], Float[Array, "size kept"]]:
    """`eigenpairs` of a second moment M of at most `rank` vectors: all of them, or those that are not zero.

    M times `rank` random columns spans its range, and M within an orthonormal basis Q of that is all of M:
    `M = Q (QᵀMQ) Qᵀ`. That takes two products with M; all eigenpairs are computed where `rank` is half of `size` or more.
    Some further columns keep the random coordinates of the range well conditioned. Products with M in its own type, which
    add no more rounding than M has from being summed up; the rest in float64.
    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.1.
    """
    size, further = matrix.shape[0], 8
    if rank is None or 2 * (rank + further) >= size:
        return eigenpairs(matrix)
    columns = randomness.normal(randomness.root(0, Stream.SPECTRUM), (size, rank + further), matrix.dtype)
    image = jnp.matmul(matrix, columns, precision="highest")
    with jax.enable_x64(True):
        basis = jnp.linalg.qr(jax.lax.convert_element_type(image, jnp.float64))[0]
        narrow = jax.lax.convert_element_type(basis, matrix.dtype)
    image = jnp.matmul(matrix, narrow, precision="highest")
    with jax.enable_x64(True):
        small = basis.T @ jax.lax.convert_element_type(image, jnp.float64)
        values, vectors = jnp.linalg.eigh((small + small.T) / 2)
        return _largest(values, basis @ vectors, rank, matrix.dtype)


def _largest(
    values: Float[Array, " all"], vectors: Float[Array, "size all"], rank: int, dtype: jax.typing.DTypeLike
) -> tuple[Float[Array, " rank"], Float[Array, "size rank"]]:
    """The last `rank` of ascending eigenpairs, descending, in another type."""
    values = jax.lax.convert_element_type(jnp.maximum(values[::-1][:rank], 0.0), dtype)
    return values, jax.lax.convert_element_type(vectors[:, ::-1][:, :rank], dtype)


def stacked_eigenpairs(
    matrices: Float[Array, "stack size size"], rank: int | None = None
) -> tuple[Float[Array, "stack rank"], Float[Array, "stack size rank"]]:
    """`eigenpairs` of each matrix, one after another: on CPU batched LAPACK calls can wait for each other for ever."""
    return jax.lax.map(lambda matrix: eigenpairs(matrix, rank), matrices)


def kronecker_eigenvalues(left: Float[Array, "groups k"], right: Float[Array, "groups l"]) -> Float[Array, " features"]:
    """The eigenvalues `α_i σ_j` of `⊕_groups A ⊗ S`, in the order of the flattened [groups, k, l]."""
    return jnp.einsum("gk,gl->gkl", left, right).reshape(-1)
