"""Compute leading eigenpairs, random bases and Nyström approximations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.linalg.krylov import Rows
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


def random_orthonormal(
    key: Key[Array, ""], size: int, rank: int, dtype: jax.typing.DTypeLike
) -> Float[Array, "size rank"]:
    """Orthonormal columns in a uniformly random position."""
    gaussian = randomness.normal(key, (size, rank), dtype)
    orthonormal, triangular = jnp.linalg.qr(gaussian)
    # QR fixes the signs of the columns; undone, the position is uniform (Mezzadri, arXiv math-ph/0609050).
    signs = jnp.where(jnp.diagonal(triangular) < 0, -1.0, 1.0).astype(dtype)
    return orthonormal * signs[None]


def random_basis(key: Key[Array, ""], size: int, rank: int, dtype: jax.typing.DTypeLike) -> Float[Array, "size rank"]:
    """Random orthonormal columns times √(size / rank).

    Entries have variance 1/rank, so `E ‖Bᵀx‖² = ‖x‖²` for every x; at full rank B is orthogonal and the identity holds
    without the expectation.
    """
    return random_orthonormal(key, size, rank, dtype) * jnp.sqrt(jnp.asarray(size / rank, dtype))


def leading_eigenvectors(matrix: Float[Array, "size size"], rank: int) -> Float[Array, "size rank"]:
    """Orthonormal eigenvectors of the `rank` largest eigenvalues of a symmetric matrix, largest first."""
    return jnp.linalg.eigh(matrix)[1][:, ::-1][:, :rank]


class LowRank(NamedTuple):
    """`A ≈ Qᵀ diag(μ) Q`.

    Attributes:
        eigenvalues: μ, descending.
        vectors: Q, orthonormal rows.
    """

    eigenvalues: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]


def nystrom(products: Rows, key: Key[Array, ""], like: Float[Array, " size"], rank: int) -> LowRank:
    """`AΩ (ΩᵀAΩ)⁻¹ ΩᵀA` for orthonormal random Ω, as eigenpairs.

    The factorisation is that of `A + νI`, ν a rounding error of AΩ, and ν is taken off again: the core of a singular A is
    singular, and its inverse square root is not.
    Reference: arXiv 2110.02820, algorithm 2.1.

    Args:
        products: V ↦ V A.
        key: Where Ω is drawn from.
        like: A vector of A's size and dtype.
        rank: Columns of Ω.
    """
    test = random_orthonormal(key, like.size, rank, like.dtype)
    moved = products(test.T).T
    shift = jnp.finfo(like.dtype).eps * jnp.linalg.norm(moved)
    shifted = moved + shift * test
    core, turn = eigenpairs(test.T @ shifted)
    # Rounding alone brings an eigenvalue of the core below ν; of a zero matrix nothing is divided by zero.
    root = jnp.maximum(core, jnp.maximum(shift, jnp.finfo(like.dtype).tiny))
    left, singular, _ = jnp.linalg.svd((shifted @ turn) / jnp.sqrt(root)[None], full_matrices=False)
    return LowRank(jnp.maximum(singular**2 - shift, 0.0), left.T)
