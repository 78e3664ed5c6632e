"""Influence functions in general: how a minimiser answers to one more example (arXiv 2412.17170, Eq. 2–6).

`F(θ) = (1/n) Σ L(z_i, θ)` has its isolated minimum at θ*, `H = ∇²F(θ*)`, and `θ(e) = argmin F(θ) + e·L(z, θ)`.
Removing a training example is `e = −1/n`, adding it once more is `e = +1/n`. Away from a stationary point the implicit
function theorem does not apply and `−H⁻¹g` is only a Newton-like direction.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.scalars import Scalar


def response(hessian: Float[Array, "p p"], gradient: Float[Array, " p"]) -> Float[Array, " p"]:
    """Derivative of the minimiser in the weight of an example: `dθ(e)/de|₀ = −H⁻¹ ∇L(z, θ*)` (Eq. 2).

    Args:
        hessian: H, non-singular, at the minimum.
        gradient: ∇L(z, θ*) of the example that gains weight.
    """
    return -jnp.linalg.solve(hessian, gradient)


def extrapolation(params: Float[Array, " p"], response: Float[Array, " p"], weight: Scalar) -> Float[Array, " p"]:
    """The minimiser at weight e to first order: `θ(e) = θ* + e·dθ/de|₀ + O(e²)` (Eq. 3)."""
    return params + weight * response


def function_influence(
    function_gradient: Float[Array, " p"], hessian: Float[Array, "p p"], gradient: Float[Array, " p"]
) -> Float[Array, ""]:
    """Derivative of f(θ(e)): `−∇f(θ*)ᵀ H⁻¹ ∇L(z, θ*)` (Eq. 4)."""
    return function_gradient @ response(hessian, gradient)


def score(
    left: Float[Array, " p"], right: Float[Array, " p"], curvature: Float[Array, "p p"], damping: Scalar
) -> Float[Array, ""]:
    """The score as a magnitude: `+ left ᵀ (C + λI)⁻¹ right` (Eq. 6 with its minus sign dropped; reconstructed).

    With `left = right` and a positive semi-definite C (Gauss–Newton, Fisher) it is never negative.

    Args:
        left: Gradient of what is measured.
        right: Gradient of the loss that trained the network; the same vector by default reading.
        curvature: C, symmetric.
        damping: λ, such that C + λI is not singular.
    """
    return left @ jnp.linalg.solve(curvature + damping * jnp.eye(left.size), right)


def signed_score(
    left: Float[Array, " p"], right: Float[Array, " p"], curvature: Float[Array, "p p"], damping: Scalar
) -> Float[Array, ""]:
    """The score with the sign of Eq. 4: `− left ᵀ (C + λI)⁻¹ right`."""
    return -score(left, right, curvature, damping)
