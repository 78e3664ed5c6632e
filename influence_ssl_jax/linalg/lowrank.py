"""Compute leading eigenpairs of matrices in memory, random bases and Nyström approximations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.linalg.krylov import Rows


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

    Examples:
        >>> import jax.numpy as jnp
        >>> eigenpairs(jnp.diag(jnp.asarray([1.0, 4.0, 2.0])), rank=2)[0].tolist()
        [4.0, 2.0]
    """
    rank = matrix.shape[0] if rank is None else min(rank, matrix.shape[0])
    with jax.enable_x64(True):
        symmetric = jax.lax.convert_element_type(matrix, jnp.float64)
        values, vectors = jnp.linalg.eigh((symmetric + symmetric.T) / 2)
        return _largest(values, vectors, rank, matrix.dtype)


def eigenpairs_of_rows(
    rows: Float[Array, "rows size"], rank: int
) -> tuple[Float[Array, " rank"], Float[Array, "size rank"]]:
    """Compute the `rank` largest eigenpairs of `M = Σ r rᵀ` without forming M.

    With the eigenpairs (μ, u) of the rows' Gram matrix, `Σ uᵢ rᵢ / √μ` is an eigenvector of M. Those of small μ, which
    rounding leaves a little off, are made orthonormal again from the largest μ down (Cholesky's QR). All is computed
    in float64, as in `eigenpairs`. A μ that is only rounding beside the largest one is zero, and so is its vector.

    Args:
        rows: The vectors r.
        rank: Number of pairs, at most the number of rows.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.linalg.lowrank import eigenpairs_of_rows
        >>> eigenpairs_of_rows(jnp.asarray([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), rank=2)[0].round(6).tolist()
        [9.0, 4.0]
    """
    with jax.enable_x64(True):
        wide = jax.lax.convert_element_type(rows, jnp.float64)
        values, turn = jnp.linalg.eigh(wide @ wide.T)
        values, turn = _largest(values, turn, rank, wide.dtype)
        kept = values > 32 * len(rows) * jnp.finfo(jnp.float64).eps * values[0]
        along = (turn / jnp.sqrt(jnp.where(kept, values, jnp.inf))[None]).T @ wide
        factor = jnp.linalg.cholesky(along @ along.T + jnp.diag(jnp.where(kept, 0.0, 1.0)))
        vectors = jax.scipy.linalg.solve_triangular(factor, along, lower=True)
        values = jax.lax.convert_element_type(jnp.where(kept, values, 0.0), rows.dtype)
        return values, jax.lax.convert_element_type(vectors.T, rows.dtype)


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
    """Draw orthonormal columns in a uniformly random position.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> basis = random_orthonormal(jax.random.key(0), size=5, rank=2, dtype=jnp.float32)
        >>> (basis.T @ basis).round(3).tolist() == [[1.0, 0.0], [0.0, 1.0]]
        True
    """
    gaussian = randomness.normal(key, (size, rank), dtype)
    orthonormal, triangular = jnp.linalg.qr(gaussian)
    # QR fixes the signs of the columns; undoing that makes the position uniform (Mezzadri, arXiv math-ph/0609050).
    signs = jnp.where(jnp.diagonal(triangular) < 0, -1.0, 1.0).astype(dtype)
    return orthonormal * signs[None]


def random_basis(key: Key[Array, ""], size: int, rank: int, dtype: jax.typing.DTypeLike) -> Float[Array, "size rank"]:
    """Draw random orthonormal columns and scale them by √(size / rank).

    Entries have variance 1/rank, so `E ‖Bᵀx‖² = ‖x‖²` for every x. At full rank B is orthogonal, and the equation
    holds for every draw.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> random_basis(jax.random.key(0), size=5, rank=2, dtype=jnp.float32).shape
        (5, 2)
    """
    return random_orthonormal(key, size, rank, dtype) * jnp.sqrt(jnp.asarray(size / rank, dtype))


def leading_eigenvectors(matrix: Float[Array, "size size"], rank: int) -> Float[Array, "size rank"]:
    """Compute orthonormal eigenvectors of the `rank` largest eigenvalues, largest first.

    Examples:
        >>> import jax.numpy as jnp
        >>> abs(leading_eigenvectors(jnp.diag(jnp.asarray([1.0, 4.0])), rank=1)).tolist()
        [[0.0], [1.0]]
    """
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

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.diag(jnp.asarray([3.0, 2.0, 0.0, 0.0]))
        >>> nystrom(lambda rows: rows @ matrix, jax.random.key(0), matrix[0], rank=2).eigenvalues.round(3).tolist()
        [3.0, 2.0]
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
