"""The first entry of the inverse of a tridiagonal matrix: Gauss and Gauss–Radau quadrature of `1/(μ + λ)`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Tridiagonal(NamedTuple):
    """The matrices T of n Lanczos runs in lockstep, the leading `taken` rows and columns of each.

    Attributes:
        alpha: The diagonal.
        beta: The off-diagonal; the last entry in use couples T to what comes next.
        taken: Steps taken.
    """

    alpha: Float[Array, "n steps"]
    beta: Float[Array, "n steps"]
    taken: Int[Array, ""]


def gauss(t: Tridiagonal, damping: Float[Array, " n"]) -> Float[Array, " n"]:
    """`e₁ᵀ(T + damping)⁻¹e₁`."""
    return _corner_of_inverse(t, damping, jnp.zeros_like(damping))


def radau(t: Tridiagonal, damping: Float[Array, ""], slack: Float[Array, " n"]) -> Float[Array, " n"]:
    """The same with damping − slack and T extended by a row so that −slack is its smallest eigenvalue.

    Infinite where T + slack is not positive definite, or damping no larger than twice the slack.
    """

    def forward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        i, alpha, coupled = entry
        pivot = jnp.where(i < t.taken, alpha + slack - coupled / pivot, pivot)
        return pivot, pivot

    before = jnp.concatenate([jnp.zeros_like(t.beta[:, :1]), t.beta[:, :-1]], axis=1) ** 2
    entries = jnp.arange(t.alpha.shape[1]), t.alpha.T, before.T
    last, pivots = jax.lax.scan(forward, jnp.ones_like(slack), entries)
    coupled = t.beta[:, jnp.maximum(t.taken - 1, 0)] ** 2
    extended = coupled / last - slack + damping - slack
    value = _corner_of_inverse(t, damping - slack, coupled / extended)
    definite = jnp.all(pivots > 0, axis=0) & (damping > 2 * slack) & (value > 0)
    return jnp.where(definite, value, jnp.inf)


def size_of(t: Tridiagonal) -> Float[Array, " n"]:
    """Gershgorin's bound of ‖T‖."""
    before = jnp.concatenate([jnp.zeros_like(t.beta[:, :1]), t.beta[:, :-1]], axis=1)
    return jnp.max(jnp.abs(t.alpha) + t.beta + before, axis=1)


def _corner_of_inverse(t: Tridiagonal, damping: Float[Array, " n"], tail: Float[Array, " n"]) -> Float[Array, " n"]:
    """`1 / (α₁ + λ − β₁² / (α₂ + λ − …  − tail))`: a continued fraction from its end, stable to rounding in T."""

    def backward(pivot: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, alpha, beta = entry
        behind = jnp.where(i == t.taken - 1, tail, beta**2 / pivot)
        return jnp.where(i < t.taken, alpha + damping - behind, pivot), None

    entries = jnp.arange(t.alpha.shape[1]), t.alpha.T, t.beta.T
    pivot, _ = jax.lax.scan(backward, jnp.ones_like(t.alpha[:, 0]), entries, reverse=True)
    return 1 / pivot
