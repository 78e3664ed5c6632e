"""The randomised Nyström approximation of a positive semi-definite matrix."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax.linalg.kronecker import eigenpairs
from influence_ssl_jax.linalg.krylov import Rows
from influence_ssl_jax.linalg.projection import random_orthonormal


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
