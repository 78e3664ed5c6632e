"""Bases to project a space of vectors into: random, or given by eigenvectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness


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
