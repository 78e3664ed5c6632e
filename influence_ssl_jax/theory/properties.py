"""Proposition 1 (Claims 1–4, Corollaries 1–2) of arXiv 2412.17170 for a linear encoder; reconstructed and corrected.

All differences are of `I_λ` of `linear.influence`; `t = 2ε²‖δ‖²`.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from influence_ssl_jax.theory import linear
from influence_ssl_jax.theory.scalars import Scalar


class Decomposition(NamedTuple):
    """`I_λ = scale · geometry`."""

    scale: Float[Array, ""]
    geometry: Float[Array, ""]


def decomposition(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Decomposition:
    """Claim 1: a scale `t·t/(t + λ)` free of W, times the Rayleigh quotient `ρ = ‖Wδ‖²/‖δ‖² ∈ [0, σ_max(W)²]`.

    Args:
        weight: W.
        delta: δ ≠ 0.
        eps: ε.
        damping: λ ≥ 0.
    """
    eigenvalue = linear.eigenvalue(delta, eps)
    moved = weight @ delta
    return Decomposition(
        scale=eigenvalue * linear.shrinkage(eigenvalue, damping), geometry=(moved @ moved) / (delta @ delta)
    )


def exponent(delta: Float[Array, " p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """Claim 3 corrected: `d log I_λ/d log ε = 2 + 2λ/(λ + t)`; 4 where ε² ≪ λ, 2 where ε² ≫ λ."""
    return 2 + 2 * linear.limit_gap(delta, eps, damping)


def change(
    weight: Float[Array, "d p"], shift: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Claim 4, exactly: `I_λ(W + E) − I_λ(W) = 2ε²(2⟨Wδ, Eδ⟩ + ‖Eδ‖²)·t/(t + λ)`."""
    before, step = weight @ (eps * delta), shift @ (eps * delta)
    return 2 * (2 * before @ step + step @ step) * linear.shrinkage(linear.eigenvalue(delta, eps), damping)


def stated_change_bound(
    weight_norm: Scalar, shift_norm: Scalar, delta: Float[Array, " p"], eps: Scalar
) -> Float[Array, ""]:
    """Claim 4 and Corollary 2 as stated: `4ε²‖W‖‖E‖` (times ‖δ‖²). It does not hold: I is quadratic in W."""
    return 2 * linear.eigenvalue(delta, eps) * weight_norm * shift_norm


def change_bound(weight_norm: Scalar, shift_norm: Scalar, delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Claim 4 corrected: `|I_λ(W + E) − I_λ(W)| ≤ (4ε²‖W‖‖E‖ + 2ε²‖E‖²)‖δ‖²`, for every λ ≥ 0.

    Args:
        weight_norm: Frobenius or (sharper) spectral norm of W.
        shift_norm: The same norm of E.
        delta: δ.
        eps: ε.
    """
    stated = stated_change_bound(weight_norm, shift_norm, delta, eps)
    return stated + linear.eigenvalue(delta, eps) * shift_norm**2


def lipschitz_constant(radius: Scalar, delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Lipschitz constant of `I_λ` on the ball `‖W‖_F ≤ B`: `4ε²B‖δ‖²`; there is none on the whole space."""
    return 2 * linear.eigenvalue(delta, eps) * radius
