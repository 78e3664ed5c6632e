"""Compute leading eigenpairs and solutions from block Krylov spaces."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import randomness

Rows: TypeAlias = Callable[[Float[Array, "rows size"]], Float[Array, "rows size"]]
"""A symmetric matrix A as the map V ↦ V A of rows: several products at once."""


class Subspace(NamedTuple):
    """Ritz pairs: `A Qᵀ = Qᵀ diag(θ) + Nᵀ Kᵀ` with orthonormal `Q` and `N`, `Q Nᵀ = 0`.

    Attributes:
        values: θ, largest absolute value first.
        vectors: Q, orthonormal rows; zero where the whole space was exhausted before so many were found.
        coupling: K; the norm of row k is ‖A q_k − θ_k q_k‖.
        smallest: The smallest Ritz value of the whole Krylov space, those that were not kept included: never below the
            smallest eigenvalue of A.
    """

    values: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]
    coupling: Float[Array, "rank block"]
    smallest: Float[Array, ""]


class _Basis(NamedTuple):
    """`rows` in use stand first, the block to multiply next after them, then zeros; `projected` is `Q A Qᵀ`."""

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
    """Ritz pairs of largest absolute value from a block Krylov space with full reorthogonalisation.

    A Krylov space of one vector holds one eigenvector of each eigenvalue, whatever its multiplicity; a block of b holds
    b of them. Where the space is exhausted (a breakdown), random directions orthogonal to it take its place, so that
    eigenvalues of any multiplicity are found once `dimension` reaches their number.
    Reference: Golub & Van Loan, Matrix Computations, section 10.3; thick restart: Wu & Simon (2000).

    Args:
        products: V ↦ V A.
        key: Draws the first block, and new directions after a breakdown.
        like: Any vector of A's size and dtype.
        rank: Pairs to keep, at most the size.
        block: Vectors multiplied at a time.
        dimension: Size of the Krylov space, 2 · rank where not given; the products with A taken without restarts.
        restarts: Cycles that begin again from the kept pairs; each takes `dimension − rank` further products.
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
        basis = _expand(products, keys[cycle + 1], _restarted(basis, kept, block), kept, block)
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
        # The second pass restores orthogonality to rounding: twice is enough.
        remainder = remainder - (remainder @ basis.rows.T) @ basis.rows
        following = _orthonormal(jax.random.fold_in(key, i), remainder, basis.rows, jnp.max(jnp.abs(coefficients)))
        projected = jax.lax.dynamic_update_slice_in_dim(basis.projected, coefficients[:, :full], begin, axis=0)
        grown = jax.lax.dynamic_update_slice_in_dim(basis.rows, following, begin + block, axis=0)
        return _Basis(grown, projected, remainder @ following.T)

    return jax.lax.fori_loop(0, (full - filled) // block, step, basis)


def _ritz(basis: _Basis, count: int, block: int) -> tuple[Array, Array, Array, Array]:
    """The `count` Ritz values of largest modulus, their coordinates (rows) and couplings, and the smallest of all."""
    # Row i of `projected` holds the coefficients on the rows known when block i was multiplied: its lower triangle.
    lower = jnp.tril(basis.projected)
    symmetric = lower + jnp.tril(lower, -1).T
    # Rows left zero in an exhausted space get an eigenvalue of their own, so that no true one mixes with them.
    empty = ~jnp.any(basis.rows[: len(symmetric)] != 0, axis=1)
    apart = 2 * jnp.max(jnp.sum(jnp.abs(symmetric), axis=1)) + 1
    values, vectors = jnp.linalg.eigh(symmetric + jnp.diag(jnp.where(empty, apart, 0.0)))
    true = values < 0.75 * apart
    order = jnp.argsort(jnp.where(true, -jnp.abs(values), 0.0), stable=True)[:count]
    chosen = jnp.where(true[order][:, None], vectors[:, order].T, 0.0)
    return jnp.where(true, values, 0.0)[order], chosen, chosen[:, -block:] @ basis.coupling, values[0]


def _restarted(basis: _Basis, kept: int, block: int) -> _Basis:
    """The kept Ritz vectors, followed by the block to multiply next."""
    full = basis.projected.shape[0]
    values, vectors, _, _ = _ritz(basis, kept, block)
    rows = jnp.zeros_like(basis.rows).at[:kept].set(vectors @ basis.rows[:full])
    rows = rows.at[kept : kept + block].set(basis.rows[full:])
    projected = jnp.zeros_like(basis.projected).at[jnp.arange(kept), jnp.arange(kept)].set(values)
    return _Basis(rows, projected, basis.coupling)


def _orthonormal(key: Key[Array, ""], block: Array, against: Array, scale: Array) -> Array:
    """Orthonormal rows that span the block; random ones, orthogonal to `against`, in the place of dependent rows."""
    rows, _ = _gram_schmidt(block, 10 * jnp.finfo(block.dtype).eps * scale)
    rows = rows - (rows @ against.T) @ against  # a small remainder, made long, is not orthogonal any more
    rows, alive = _gram_schmidt(rows, jnp.asarray(0.5, block.dtype))

    def refill() -> Array:
        drawn = _random_rows(key, jnp.concatenate([against, rows]), block.shape[0])
        return _gram_schmidt(jnp.where(alive[:, None], rows, drawn), _floor(drawn))[0]

    return jax.lax.cond(jnp.all(alive), lambda: rows, refill)


def _random_rows(key: Key[Array, ""], against: Array, count: int) -> Array:
    """What random unit vectors hold orthogonal to the rows of `against`; rounding alone where there is no room."""
    drawn = randomness.normal(key, (count, against.shape[1]), against.dtype)
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    for _ in range(2):
        drawn = drawn - (drawn @ against.T) @ against
    return drawn


def _floor(rows: Array) -> Array:
    return jnp.sqrt(jnp.finfo(rows.dtype).eps)


def _gram_schmidt(block: Array, floor: Array) -> tuple[Array, Bool[Array, " block"]]:
    """Rows made orthonormal one by one (each twice); zero, and not alive, where no more than `floor` remains."""
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
    return -(-count // block) * block


def largest_eigenvalue(
    products: Rows, key: Key[Array, ""], like: Float[Array, " size"], steps: int
) -> Float[Array, ""]:
    """`‖A u‖` after `steps` steps `u ← A u / ‖A u‖` from a random start: rises to the largest |eigenvalue| from below."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        unit, _size = carry
        product = products(unit[None])[0]
        size = jnp.linalg.norm(product)
        return (product / jnp.where(size > 0, size, 1.0), size), None

    start = randomness.normal(key, like.shape, like.dtype)
    (_, size), _ = jax.lax.scan(step, (start / jnp.linalg.norm(start), jnp.zeros((), like.dtype)), None, steps)
    return size


class Solutions(NamedTuple):
    """Solutions of `A x = b`, and what they leave.

    Attributes:
        solutions: x, one a row.
        residuals: `b − A x`, from a product of their own and not from the recurrence.
        iterations: Products with a block that were taken before that.
    """

    solutions: Float[Array, "rows size"]
    residuals: Float[Array, "rows size"]
    iterations: Int[Array, ""]


class _Iterate(NamedTuple):
    """`B − X A = L W` with orthonormal rows W, so that the norms of the residuals are those of the rows of L.

    `gram` is `W P Wᵀ`, P the preconditioner, and `directions` are conjugate to all before them.
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
    """Solve `A x = b` for every row b, from `x = 0`, each x the best of one Krylov space that all of them span.

    An iteration is one product with a block, however many of its right-hand sides are solved already; there are at most
    as many iterations as a right-hand side would take alone, fewer where A has a few large eigenvalues: a block of s
    goes as if the s largest were not there.

    The residuals enter by an orthonormal basis of their span, from a QR decomposition in every iteration. It is
    orthonormal whatever the residuals are: right-hand sides that are zero, equal, dependent or solved long before the
    others add directions that cost accuracy nowhere, and no matrix that is inverted becomes singular.
    Reference: Dubrulle, Retooling the method of block conjugate gradients, ETNA 12 (2001), algorithm BCGrQ; here with
    the Gram matrix of the basis in the preconditioner's norm, so that no square root of the preconditioner is needed.

    In single precision what rounding of the products leaves in x is, in A's norm, some times what it leaves with a space
    for each b (2 to 7 times at condition numbers 1e4 to 1e6), in a tenth of the products. Forms `bᵀx + xᵀr` are as near
    either way: there the rounding of r decides.

    Args:
        products: V ↦ V A, A symmetric positive definite.
        right: b, one a row.
        tolerance: Stop where ‖residual‖ ≤ tolerance · ‖b‖ for every row.
        iterations: Stop after so many.
        precondition: V ↦ V P, P symmetric positive definite and near A⁻¹.
    """
    target = tolerance * jnp.linalg.norm(right, axis=1)

    def unsolved(held: _Iterate) -> Array:
        return jnp.any(jnp.linalg.norm(held.lengths, axis=1) > target) & (held.iterations < iterations)

    def step(held: _Iterate) -> _Iterate:
        moved = products(held.directions)
        weights = jnp.linalg.solve(held.directions @ moved.T, held.gram).T
        turn, basis = _factorise(held.basis - weights @ moved)
        preconditioned = precondition(basis)
        gram = basis @ preconditioned.T
        conjugate = gram @ jnp.linalg.solve(held.gram, turn).T
        return _Iterate(
            held.solutions + held.lengths @ (weights @ held.directions),
            held.lengths @ turn,
            basis,
            gram,
            preconditioned + conjugate @ held.directions,
            held.iterations + 1,
        )

    lengths, basis = _factorise(right)
    directions = precondition(basis)
    begin = _Iterate(jnp.zeros_like(right), lengths, basis, basis @ directions.T, directions, jnp.zeros((), int))
    found = jax.lax.while_loop(unsolved, step, begin)
    return Solutions(found.solutions, right - products(found.solutions), found.iterations)


def _factorise(rows: Float[Array, "rows size"]) -> tuple[Float[Array, "rows block"], Float[Array, "block size"]]:
    """`rows = L W` with orthonormal rows W: as many as `rows`, or as there is room for."""
    basis, upper = jnp.linalg.qr(rows.T)
    return upper.T, basis.T
