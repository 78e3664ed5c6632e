"""Losses that are homogeneous of degree m in the parameters: `l(cθ) = c^m l(θ)`.

Euler: `gᵀθ = m·l` and `Hθ = (m − 1) g`, so g lies in the range of the *exact* Hessian and `gᵀH⁺g = gᵀθ/(m − 1)`.
One linear layer has m = 2, L layers m = 2L, the cosine distance m = 0.
"""

from jaxtyping import Array, Float

from influence_ssl_jax.theory.item import Scalar


def influence_limit(loss: Scalar, degree: Scalar) -> Scalar:
    """Exact-Hessian limit `gᵀH⁺g = m/(m − 1)·l`: 2l for one layer, 4/3·l for two, 0 for the cosine distance (m ≠ 1)."""
    return degree / (degree - 1) * loss


def euler_gradient(hessian: Float[Array, "k k"], params: Float[Array, " k"], degree: Scalar) -> Float[Array, " k"]:
    """The gradient from the Hessian alone: `g = Hθ/(m − 1)`."""
    return hessian @ params / (degree - 1)


def rescaled(influence: Scalar, factor: Scalar, degree: Scalar) -> Scalar:
    """Influence of cθ from that of θ: `I_μ(cθ) = c^m I_λ(θ)` at the damping `μ` of `rescaled_damping`."""
    return factor**degree * influence


def rescaled_damping(damping: Scalar, factor: Scalar, degree: Scalar) -> Scalar:
    """`μ = c^(m−2) λ`: the damping that means the same at cθ as λ does at θ."""
    return factor ** (degree - 2) * damping
