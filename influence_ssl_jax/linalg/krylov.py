"""Lanczos: an orthonormal Krylov basis in which a symmetric matrix is tridiagonal."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FlatMatvec: TypeAlias = Callable[[Float[Array, " size"]], Float[Array, " size"]]


class Tridiagonal(NamedTuple):
    """`A Q = Q T + β_m q_{m+1} e_mᵀ` with `T` tridiagonal.

    Attributes:
        diagonal: α.
        off_diagonal: β, the last one leading out of the basis.
        basis: Qᵀ, orthonormal rows; rows after a breakdown are zero.
    """

    diagonal: Float[Array, " steps"]
    off_diagonal: Float[Array, " steps"]
    basis: Float[Array, "steps size"]


def lanczos(matvec: FlatMatvec, start: Float[Array, " size"], steps: int) -> Tridiagonal:
    """Run `steps` Lanczos steps with full reorthogonalisation (twice, which is enough).

    Where the Krylov space is exhausted (β falls to rounding), what follows is zero: α = β = 0 and zero rows.
    Reference: Golub & Van Loan, Matrix Computations, section 10.1.
    """
    tiny = jnp.finfo(start.dtype).eps * 10
    size = start.shape[0]

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, vector, scale = carry
        basis = basis.at[i].set(vector)
        product = matvec(vector)
        alpha = vector @ product
        for _ in range(2):
            product = product - basis.T @ (basis @ product)
        scale = jnp.maximum(scale, jnp.abs(alpha))
        beta = jnp.linalg.norm(product)
        alive = beta > tiny * scale
        beta = jnp.where(alive, beta, 0.0)
        following = jnp.where(alive, product / jnp.where(alive, beta, 1.0), 0.0)
        return (basis, following, jnp.maximum(scale, beta)), (alpha, beta)

    begin = (jnp.zeros((steps, size), start.dtype), start / jnp.linalg.norm(start), jnp.zeros((), start.dtype))
    (basis, _, _), (alpha, beta) = jax.lax.scan(step, begin, jnp.arange(steps))
    return Tridiagonal(alpha, beta, basis)


def tridiagonal_matrix(found: Tridiagonal) -> Float[Array, "steps steps"]:
    """T as a dense matrix."""
    inner = found.off_diagonal[:-1]
    return jnp.diag(found.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)


def smallest_ritz_value(matvec: FlatMatvec, start: Float[Array, " size"], steps: int) -> Float[Array, ""]:
    """The smallest Ritz value: never below the smallest eigenvalue of the matrix, and near it after enough steps."""
    found = lanczos(matvec, start, min(steps, start.shape[0]))
    return jnp.linalg.eigvalsh(tridiagonal_matrix(found))[0]
