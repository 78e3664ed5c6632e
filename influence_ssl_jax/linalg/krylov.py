"""Compute leading eigenpairs and solutions of linear systems from block Krylov spaces."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import randomness

Rows: TypeAlias = Callable[[Float[Array, "rows size"]], Float[Array, "rows size"]]
"""A symmetric matrix A as the map V ↦ V A on rows: several products at once."""


class Subspace(NamedTuple):
    """Ritz pairs of a symmetric matrix A.

    `A Qᵀ = Qᵀ diag(θ) + Nᵀ Kᵀ` with orthonormal `Q` and `N`, and `Q Nᵀ = 0`.

    Attributes:
        values: θ, in descending order of |θ|.
        vectors: Q, orthonormal rows. Rows are zero if the whole space has fewer than `rank` dimensions.
        coupling: K. The norm of its row k is ‖A q_k − θ_k q_k‖.
        smallest: The smallest Ritz value of the whole Krylov space, also of pairs that were not kept. It is never
            below the smallest eigenvalue of A.
    """

    values: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]
    coupling: Float[Array, "rank block"]
    smallest: Float[Array, ""]


class _Basis(NamedTuple):
    """A Krylov basis.

    `rows` holds the rows in use, then the block to multiply next, then zeros. `projected` is `Q A Qᵀ`.
    """

    rows: Array
    projected: Array
    coupling: Array


def leading_eigenpairs(
    products: Rows,
    key: Key[Array, ""],
    like: Float[Array, " size"],
    rank: int,
    block: int = 8,
    dimension: int | None = None,
    restarts: int = 0,
) -> Subspace:
    """Compute the Ritz pairs of largest |θ| from a block Krylov space.

    A Krylov space of one vector contains one eigenvector for each eigenvalue, whatever its multiplicity; a block of b
    vectors contains b of them. If the space is exhausted (a breakdown), it continues with random directions
    orthogonal to it, so eigenvalues of any multiplicity appear once `dimension` reaches their number. All vectors are
    reorthogonalised.
    Reference: Golub & Van Loan, Matrix Computations, section 10.3; thick restart: Wu & Simon (2000).

    Args:
        products: V ↦ V A.
        key: Draws the first block, and new directions after a breakdown.
        like: Any vector of A's size and dtype.
        rank: Number of pairs to keep, at most the size of A.
        block: Number of vectors in one product.
        dimension: Size of the Krylov space, `2 · rank` if None. Without restarts it is the number of products with A.
        restarts: Number of cycles that start again from the kept pairs. Each needs `dimension − rank` further
            products.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.diag(jnp.arange(6.0))
        >>> pairs = leading_eigenpairs(lambda rows: rows @ matrix, jax.random.key(0), matrix[0], 2, 2, dimension=6)
        >>> pairs.values.round(3).tolist()
        [5.0, 4.0]
    """
    size = like.shape[0]
    rank = min(rank, size)
    kept = _round_up(rank, block)
    full = _round_up(min(max(dimension or 2 * rank, rank), size), block)
    first, *keys = jax.random.split(key, 2 + restarts)
    rows = jnp.zeros((full + block, size), like.dtype)
    start, _ = _gram_schmidt(_random_rows(first, rows, block), _floor(rows))
    basis = _Basis(
        rows.at[:block].set(start), jnp.zeros((full, full), like.dtype), jnp.zeros((block, block), like.dtype)
    )
    basis = _expand(products, keys[0], basis, 0, block)
    for cycle in range(restarts if kept + block <= full else 0):
        basis = _expand(products, keys[cycle + 1], _restart(basis, kept, block), kept, block)
    values, vectors, coupling, smallest = _ritz(basis, rank, block)
    return Subspace(values, vectors @ basis.rows[:full], coupling, smallest)


def _expand(products: Rows, key: Key[Array, ""], basis: _Basis, filled: int, block: int) -> _Basis:
    """Multiply block after block until the space is full."""
    full = basis.projected.shape[0]

    def step(i: Array, basis: _Basis) -> _Basis:
        begin = filled + i * block
        rows = jax.lax.dynamic_slice_in_dim(basis.rows, begin, block)
        moved = products(rows)
        coefficients = moved @ basis.rows.T
        remainder = moved - coefficients @ basis.rows
        # The second pass restores orthogonality up to rounding; two passes are enough.
        remainder = remainder - (remainder @ basis.rows.T) @ basis.rows
        following = _orthonormal(jax.random.fold_in(key, i), remainder, basis.rows, jnp.max(jnp.abs(coefficients)))
        projected = jax.lax.dynamic_update_slice_in_dim(basis.projected, coefficients[:, :full], begin, axis=0)
        grown = jax.lax.dynamic_update_slice_in_dim(basis.rows, following, begin + block, axis=0)
        return _Basis(grown, projected, remainder @ following.T)

    return jax.lax.fori_loop(0, (full - filled) // block, step, basis)


def _ritz(basis: _Basis, count: int, block: int) -> tuple[Array, Array, Array, Array]:
    """Compute the Ritz pairs of largest |θ|.

    Returns:
        The `count` values, the coordinates of their vectors (rows), the couplings, and the smallest of all Ritz
        values.
    """
    # Row i of `projected` has the coefficients for the rows that existed when block i was multiplied: a lower triangle.
    lower = jnp.tril(basis.projected)
    symmetric = lower + jnp.tril(lower, -1).T
    # Zero rows of an exhausted space get an eigenvalue of their own, so no true eigenvector mixes with them.
    empty = ~jnp.any(basis.rows[: len(symmetric)] != 0, axis=1)
    apart = 2 * jnp.max(jnp.sum(jnp.abs(symmetric), axis=1)) + 1
    values, vectors = jnp.linalg.eigh(symmetric + jnp.diag(jnp.where(empty, apart, 0.0)))
    true = values < 0.75 * apart
    order = jnp.argsort(jnp.where(true, -jnp.abs(values), 0.0), stable=True)[:count]
    chosen = jnp.where(true[order][:, None], vectors[:, order].T, 0.0)
    return jnp.where(true, values, 0.0)[order], chosen, chosen[:, -block:] @ basis.coupling, values[0]


def _restart(basis: _Basis, kept: int, block: int) -> _Basis:
    """Return a basis of the kept Ritz vectors and the next block."""
    full = basis.projected.shape[0]
    values, vectors, _, _ = _ritz(basis, kept, block)
    rows = jnp.zeros_like(basis.rows).at[:kept].set(vectors @ basis.rows[:full])
    rows = rows.at[kept : kept + block].set(basis.rows[full:])
    projected = jnp.zeros_like(basis.projected).at[jnp.arange(kept), jnp.arange(kept)].set(values)
    return _Basis(rows, projected, basis.coupling)


def _orthonormal(key: Key[Array, ""], block: Array, against: Array, scale: Array) -> Array:
    """Orthonormalise a block, with random rows in place of dependent ones.

    The random rows are orthogonal to `against`.
    """
    rows, _ = _gram_schmidt(block, 10 * jnp.finfo(block.dtype).eps * scale)
    rows = rows - (rows @ against.T) @ against  # a small remainder is no longer orthogonal after it is normalised
    rows, alive = _gram_schmidt(rows, jnp.asarray(0.5, block.dtype))

    def refill() -> Array:
        drawn = _random_rows(key, jnp.concatenate([against, rows]), block.shape[0])
        return _gram_schmidt(jnp.where(alive[:, None], rows, drawn), _floor(drawn))[0]

    return jax.lax.cond(jnp.all(alive), lambda: rows, refill)


def _random_rows(key: Key[Array, ""], against: Array, count: int) -> Array:
    """Draw random unit vectors without parts along the rows of `against`.

    If `against` spans the whole space, only rounding errors are left.
    """
    drawn = randomness.normal(key, (count, against.shape[1]), against.dtype)
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    for _ in range(2):
        drawn = drawn - (drawn @ against.T) @ against
    return drawn


def _floor(rows: Array) -> Array:
    """Return the length below which a unit vector counts as dependent."""
    return jnp.sqrt(jnp.finfo(rows.dtype).eps)


def _gram_schmidt(block: Array, floor: Array) -> tuple[Array, Bool[Array, " block"]]:
    """Orthonormalise rows one by one, each twice.

    A row is set to zero, and marked as not alive, if at most `floor` of it remains.
    """
    done = jnp.zeros_like(block)
    alive = []
    for index in range(block.shape[0]):
        row = block[index]
        for _ in range(2):
            row = row - (done @ row) @ done
        length = jnp.linalg.norm(row)
        alive.append(length > floor)
        done = done.at[index].set(jnp.where(alive[-1], row / jnp.where(alive[-1], length, 1.0), 0.0))
    return done, jnp.stack(alive)


def _round_up(count: int, block: int) -> int:
    """Round up to a multiple of `block`."""
    return -(-count // block) * block


def largest_eigenvalue(
    products: Rows, key: Key[Array, ""], like: Float[Array, " size"], steps: int
) -> Float[Array, ""]:
    """Estimate the largest |eigenvalue| of A from below, by power iteration.

    It is `‖A u‖` after `steps` steps `u ← A u / ‖A u‖` from a random start, and grows with `steps`.

    Args:
        products: V ↦ V A.
        key: Draws the start.
        like: Any vector of A's size and dtype.
        steps: Number of products with A.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> matrix = jnp.diag(jnp.asarray([1.0, -4.0]))
        >>> float(largest_eigenvalue(lambda rows: rows @ matrix, jax.random.key(0), matrix[0], steps=20).round(3))
        4.0
    """

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        unit, _size = carry
        product = products(unit[None])[0]
        size = jnp.linalg.norm(product)
        return (product / jnp.where(size > 0, size, 1.0), size), None

    start = randomness.normal(key, like.shape, like.dtype)
    (_, size), _ = jax.lax.scan(step, (start / jnp.linalg.norm(start), jnp.zeros((), like.dtype)), None, steps)
    return size


class Solutions(NamedTuple):
    """Solutions of `A x = b` and their residuals.

    Attributes:
        solutions: x, one in each row.
        residuals: `b − A x`, computed by a product of its own and not by the recurrence.
        iterations: Number of products with a block before that one.
    """

    solutions: Float[Array, "rows size"]
    residuals: Float[Array, "rows size"]
    iterations: Int[Array, ""]


class _Iterate(NamedTuple):
    """An iterate X of block CG.

    `B − X A = L W` with orthonormal rows W, so the residuals have the norms of the rows of L. `gram` is `W P Wᵀ`,
    where P is the preconditioner. `directions` are conjugate to all earlier ones.
    """

    solutions: Float[Array, "rows size"]
    lengths: Float[Array, "rows block"]
    basis: Float[Array, "block size"]
    gram: Float[Array, "block block"]
    directions: Float[Array, "block size"]
    iterations: Int[Array, ""]


def block_cg(
    products: Rows,
    right: Float[Array, "rows size"],
    tolerance: float | Array,
    iterations: int | Array,
    precondition: Rows,
) -> Solutions:
    """Solve `A x = b` for several right-hand sides by block conjugate gradients.

    All iterations start at `x = 0`. Each x is the best one in the Krylov space that all right-hand sides span
    together. An iteration is one product with a block, also if some of its right-hand sides are already solved. There
    are at most as many iterations as one right-hand side would need alone, and fewer if A has a few large
    eigenvalues: a block of s rows converges as if the s largest eigenvalues were absent.

    Each iteration orthonormalises the residuals by a QR decomposition. The basis is orthonormal for any residuals:
    right-hand sides that are zero, equal, dependent or solved early add directions that do not reduce the accuracy,
    and no inverted matrix becomes singular.
    Reference: Dubrulle, Retooling the method of block conjugate gradients, ETNA 12 (2001), algorithm BCGrQ; here with
    the Gram matrix of the basis in the norm of the preconditioner, so it needs no square root of the preconditioner.

    In single precision, the rounding error of the products causes an error of x, in the norm of A, that is 2 to 7
    times as large as with one Krylov space for each b (measured at condition numbers 1e4 to 1e6), with a tenth of the
    products. The forms `bᵀx + xᵀr` are equally accurate in both ways: there the rounding of r decides.

    Args:
        products: V ↦ V A, A symmetric positive definite.
        right: b, one in each row.
        tolerance: Stop if ‖residual‖ ≤ tolerance · ‖b‖ for every row.
        iterations: Stop after this number of iterations.
        precondition: V ↦ V P, P symmetric positive definite and close to A⁻¹.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.linalg.krylov import block_cg
        >>> matrix = jnp.asarray([[2.0, 1.0], [1.0, 3.0]])
        >>> solved = block_cg(lambda rows: rows @ matrix, jnp.asarray([[5.0, 5.0]]), 1e-6, 10, lambda rows: rows)
        >>> [round(float(x), 3) for x in solved.solutions[0]]
        [2.0, 1.0]
    """
    target = tolerance * jnp.linalg.norm(right, axis=1)

    def is_unsolved(iterate: _Iterate) -> Array:
        return jnp.any(jnp.linalg.norm(iterate.lengths, axis=1) > target) & (iterate.iterations < iterations)

    def step(iterate: _Iterate) -> _Iterate:
        moved = products(iterate.directions)
        weights = jnp.linalg.solve(iterate.directions @ moved.T, iterate.gram).T
        turn, basis = _factorise(iterate.basis - weights @ moved)
        preconditioned = precondition(basis)
        gram = basis @ preconditioned.T
        conjugate = gram @ jnp.linalg.solve(iterate.gram, turn).T
        return _Iterate(
            iterate.solutions + iterate.lengths @ (weights @ iterate.directions),
            iterate.lengths @ turn,
            basis,
            gram,
            preconditioned + conjugate @ iterate.directions,
            iterate.iterations + 1,
        )

    lengths, basis = _factorise(right)
    directions = precondition(basis)
    begin = _Iterate(jnp.zeros_like(right), lengths, basis, basis @ directions.T, directions, jnp.zeros((), int))
    last = jax.lax.while_loop(is_unsolved, step, begin)
    return Solutions(last.solutions, right - products(last.solutions), last.iterations)


def _factorise(rows: Float[Array, "rows size"]) -> tuple[Float[Array, "rows block"], Float[Array, "block size"]]:
    """Factorise `rows = L W` with orthonormal rows W.

    W has as many rows as `rows`, or as the space has dimensions.
    """
    basis, upper = jnp.linalg.qr(rows.T)
    return upper.T, basis.T
