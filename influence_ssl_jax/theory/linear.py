"""A linear encoder under a perturbation: Lemmas 3–4 and Theorem 1 (arXiv 2412.17170, Appendix C.1; reconstructed).

`f(x) = Wx`, `a(x) = x + εδ`, `l(W) = ‖f(x) − f(a(x))‖²` (no ½). Vectors of W are row-major. Everything is written in
the whole perturbation `η = εδ`, never in powers of ε: `ε⁴` underflows in float32 at ε = 1e-12, where `t` does not.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.scalars import Scalar


def loss(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, ""]:
    """Alignment loss `l = ε²‖Wδ‖²` (Lemma 3), the same at every x."""
    moved = weight @ (eps * delta)
    return moved @ moved


def gradient(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, "d p"]:
    """Gradient `∇l = 2ε² W δδᵀ` (Lemma 4)."""
    perturbation = eps * delta
    return 2 * jnp.outer(weight @ perturbation, perturbation)


def hessian(weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar) -> Float[Array, "dp dp"]:
    """Hessian `∇²l = 2ε² I_d ⊗ δδᵀ` in row-major vec W (Lemma 4): rank d, constant in W."""
    perturbation = eps * delta
    return 2 * jnp.kron(jnp.eye(weight.shape[0]), jnp.outer(perturbation, perturbation))


def eigenvalue(delta: Float[Array, " p"], eps: Scalar, scale: Scalar = 1.0) -> Float[Array, ""]:
    """The only non-zero eigenvalue of that Hessian, d-fold: `t = 2sε²‖δ‖²` for the loss `s‖f(x) − f(a(x))‖²`."""
    perturbation = eps * delta
    return 2 * scale * (perturbation @ perturbation)


def shrinkage(eigenvalue: Float[Array, "*k"], damping: Scalar) -> Float[Array, "*k"]:
    """What damping leaves of a direction: `t/(t + λ)`, and 0 where t = λ = 0."""
    positive = jnp.maximum(eigenvalue, 0.0)  # eigen-solvers return zeros as small negative numbers
    total = positive + damping
    return positive / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def influence(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar, scale: Scalar = 1.0
) -> Float[Array, ""]:
    """Self-influence with the point's own Hessian (Theorem 1, as a magnitude, for any output dimension).

    `I_λ = gᵀ(H + λI)⁻¹g = 4ε⁴‖Wδ‖²‖δ‖²/(λ + 2ε²‖δ‖²) = 2l·t/(t + λ)`; with nothing to measure (δ = 0, W = 0) it is 0.

    Args:
        weight: W.
        delta: δ, of any length.
        eps: ε.
        damping: λ ≥ 0; at 0 the value is the limit `gᵀH⁺g = 2l`.
        scale: s of the loss `s‖f(x) − f(a(x))‖²`.
    """
    return influence_limit(weight, delta, eps, scale) * shrinkage(eigenvalue(delta, eps, scale), damping)


def influence_limit(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], eps: Scalar, scale: Scalar = 1.0
) -> Float[Array, ""]:
    """Theorem 1's limit λ → 0: `I_0 = 2l`, twice the point's own loss."""
    return 2 * scale * loss(weight, delta, eps)


def limit_gap(delta: Float[Array, " p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """How far `I_λ` is from its limit: `(I_0 − I_λ)/I_0 = λ/(λ + t)`; small λ means λ ≪ 2ε²‖δ‖², not λ ≪ 1."""
    total = damping + eigenvalue(delta, eps)
    return damping / jnp.maximum(total, jnp.finfo(total.dtype).tiny)
