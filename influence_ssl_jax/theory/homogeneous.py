"""Derive influence of losses homogeneous of degree m in the parameters: `l(cθ) = c^m l(θ)`.

Euler: `gᵀθ = m·l` and `Hθ = (m − 1) g`, so g lies in the range of the *exact* Hessian and `gᵀH⁺g = gᵀθ/(m − 1)`.
One linear layer has m = 2, L layers have m = 2L, and the cosine distance has m = 0.
"""

from jaxtyping import Array, Float

from influence_ssl_jax.theory.item import Scalar


def influence_limit(loss: Scalar, degree: Scalar) -> Scalar:
    """Return the limit with the exact Hessian, `gᵀH⁺g = m/(m − 1)·l`, for m ≠ 1.

    It is 2l for one layer, 4/3·l for two, and 0 for the cosine distance.

    Examples:
        >>> influence_limit(3.0, 4)
        4.0
    """
    return degree / (degree - 1) * loss


def euler_gradient(hessian: Float[Array, "k k"], params: Float[Array, " k"], degree: Scalar) -> Float[Array, " k"]:
    """Return the gradient from the Hessian alone: `g = Hθ/(m − 1)`."""
    return hessian @ params / (degree - 1)


def rescale_influence(influence: Scalar, factor: Scalar, degree: Scalar) -> Scalar:
    """Return the influence of cθ from that of θ: `I_μ(cθ) = c^m I_λ(θ)`.

    μ is that of `rescale_damping`.
    """
    return factor**degree * influence


def rescale_damping(damping: Scalar, factor: Scalar, degree: Scalar) -> Scalar:
    """Return `μ = c^(m−2) λ`, the damping at cθ that corresponds to λ at θ."""
    return factor ** (degree - 2) * damping
