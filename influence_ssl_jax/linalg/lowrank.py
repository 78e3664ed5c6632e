"""Compute leading eigenpairs of matrices in memory, random bases and Nyström approximations."""

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
    """Compute the `rank` largest eigenvalues of a second moment, and their eigenvectors.

    Eigenvalues are in descending order and not below zero. They are computed in float64, whatever the dtype of the
    matrix: single precision mixes the eigenvectors of close eigenvalues, and the products of two factors' eigenvalues
    span twice as many orders of magnitude as those of one factor.

    Args:
        matrix: A symmetric positive semi-definite matrix.
        rank: Number of pairs; all if None.
    """
    rank = matrix.shape[0] if rank is None else min(rank, matrix.shape[0])
    with jax.enable_x64(True):
        symmetric = jax.lax.convert_element_type(matrix, jnp.float64)
        values, vectors = jnp.linalg.eigh((symmetric + symmetric.T) / 2)
        return _largest(values, vectors, rank, matrix.dtype)


def eigenpairs_of_rank(
    matrix: Float[Array, "size size"], rank: int | None
) -> tuple[Float[Array, " kept"], Float[Array, "size kept"]]:
    """Compute eigenpairs of a second moment M of at most `rank` vectors.

    These are all eigenpairs of M, or those with nonzero eigenvalues. M times `rank` random columns spans its range,
    and M restricted to an orthonormal basis Q of that range is all of M: `M = Q (QᵀMQ) Qᵀ`. That needs two products
    with M. If `rank` is at least half of `size`, all eigenpairs are computed instead. A few further columns keep the
    random coordinates of the range well conditioned. Products with M use its own type, which adds no more rounding
    than the sum that formed M; the rest is in float64.
    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.1.

    Args:
        matrix: M.
        rank: A bound of the rank of M; None if no bound is known.
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
    """Return the last `rank` of ascending eigenpairs, descending, in another type."""
    values = jax.lax.convert_element_type(jnp.maximum(values[::-1][:rank], 0.0), dtype)
    return values, jax.lax.convert_element_type(vectors[:, ::-1][:, :rank], dtype)


def stacked_eigenpairs(
    matrices: Float[Array, "stack size size"], rank: int | None = None
) -> tuple[Float[Array, "stack rank"], Float[Array, "stack size rank"]]:
    """Compute `eigenpairs` of each matrix of a stack, one after another.

    On a CPU, batched LAPACK calls can wait for each other for ever.
    """
    return jax.lax.map(lambda matrix: eigenpairs(matrix, rank), matrices)


def kronecker_eigenvalues(left: Float[Array, "groups k"], right: Float[Array, "groups l"]) -> Float[Array, " features"]:
    """Compute the eigenvalues `α_i σ_j` of `⊕_groups A ⊗ S`.

    Args:
        left: α, the eigenvalues of each group's A.
        right: σ, the eigenvalues of each group's S.

    Returns:
        The products in the order of the flattened array [groups, k, l].

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.linalg.lowrank import kronecker_eigenvalues
        >>> kronecker_eigenvalues(jnp.asarray([[2.0, 1.0]]), jnp.asarray([[10.0, 3.0]])).tolist()
        [20.0, 6.0, 10.0, 3.0]
    """
    return jnp.einsum("gk,gl->gkl", left, right).reshape(-1)


def random_orthonormal(
    key: Key[Array, ""], size: int, rank: int, dtype: jax.typing.DTypeLike
) -> Float[Array, "size rank"]:
    """Draw orthonormal columns in a uniformly random position."""
    gaussian = randomness.normal(key, (size, rank), dtype)
    orthonormal, triangular = jnp.linalg.qr(gaussian)
    # QR fixes the signs of the columns; undoing that makes the position uniform (Mezzadri, arXiv math-ph/0609050).
    signs = jnp.where(jnp.diagonal(triangular) < 0, -1.0, 1.0).astype(dtype)
    return orthonormal * signs[None]


def random_basis(key: Key[Array, ""], size: int, rank: int, dtype: jax.typing.DTypeLike) -> Float[Array, "size rank"]:
    """Draw random orthonormal columns and scale them by √(size / rank).

    Entries have variance 1/rank, so `E ‖Bᵀx‖² = ‖x‖²` for every x. At full rank B is orthogonal, and the equation
    holds for every draw.
    """
    return random_orthonormal(key, size, rank, dtype) * jnp.sqrt(jnp.asarray(size / rank, dtype))


def leading_eigenvectors(matrix: Float[Array, "size size"], rank: int) -> Float[Array, "size rank"]:
    """Compute orthonormal eigenvectors of the `rank` largest eigenvalues, largest first."""
    return jnp.linalg.eigh(matrix)[1][:, ::-1][:, :rank]


class LowRank(NamedTuple):
    """A low-rank approximation `A ≈ Qᵀ diag(μ) Q`.

    Attributes:
        eigenvalues: μ, in descending order.
        vectors: Q, orthonormal rows.
    """

    eigenvalues: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]


def nystrom(products: Rows, key: Key[Array, ""], like: Float[Array, " size"], rank: int) -> LowRank:
    """Approximate a positive semi-definite matrix A by `AΩ (ΩᵀAΩ)⁻¹ ΩᵀA`, as eigenpairs.

    Ω has orthonormal random columns. The factorised matrix is `A + νI`, where ν is the size of a rounding error of
    AΩ, and ν is subtracted again from the eigenvalues: if A is singular, its core is singular too, and the inverse
    square root of the core would not exist without the shift.
    Reference: arXiv 2110.02820, algorithm 2.1.

    Args:
        products: V ↦ V A.
        key: Draws Ω.
        like: Any vector of A's size and dtype.
        rank: Number of columns of Ω.
    """
    test = random_orthonormal(key, like.size, rank, like.dtype)
    moved = products(test.T).T
    shift = jnp.finfo(like.dtype).eps * jnp.linalg.norm(moved)
    shifted = moved + shift * test
    core, turn = eigenpairs(test.T @ shifted)
    # Only rounding makes an eigenvalue of the core smaller than ν; `tiny` prevents 0/0 for a zero matrix.
    root = jnp.maximum(core, jnp.maximum(shift, jnp.finfo(like.dtype).tiny))
    left, singular, _ = jnp.linalg.svd((shifted @ turn) / jnp.sqrt(root)[None], full_matrices=False)
    return LowRank(jnp.maximum(singular**2 - shift, 0.0), left.T)
