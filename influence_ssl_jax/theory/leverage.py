"""The data set's own Hessian: score = leverage × sensitivity, and why duplicates score low.

Linear encoder, `l_i = ε²‖Wδ_i‖²`, `S = (1/n) Σ δ_iδ_iᵀ`, `H = 2ε² I_d ⊗ S`, `μ = λ/(2ε²)`. Derived for this project
from Eq. 6 of arXiv 2412.17170. Rows of `deltas` are δ_1 … δ_n.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.linear import shrinkage
from influence_ssl_jax.theory.scalars import Scalar


def hessian(deltas: Float[Array, "n p"], eps: Scalar) -> Float[Array, "p p"]:
    """The block `2ε²S` of the Hessian `2ε² I_d ⊗ S` of the mean alignment loss."""
    perturbations = eps * deltas
    return 2 * perturbations.T @ perturbations / deltas.shape[0]


def leverages(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, " n"]:
    """Ridge leverages `h_i = (1/n) δ_iᵀ(S + μI)⁻¹δ_i = (2ε²/n) δ_iᵀ(2ε²S + λI)⁻¹δ_i ∈ [0, 1)`.

    Args:
        deltas: One perturbation per row.
        eps: ε.
        damping: λ > 0.
    """
    return jnp.diagonal(gram(deltas, eps, damping))


def gram(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, "n n"]:
    """The hat matrix `(2ε²/n) δ_iᵀ(2ε²S + λI)⁻¹δ_j`; the leverages are its diagonal."""
    perturbations = eps * deltas
    damped = hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    return 2 * perturbations @ jnp.linalg.solve(damped, perturbations.T) / deltas.shape[0]


def influences(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, " n"]:
    """Self-influence of every point with the data set's Hessian: `I_i = 2n h_i l_i`; Theorem 1 is n = 1."""
    moved = (eps * deltas) @ weight.T
    return 2 * deltas.shape[0] * leverages(deltas, eps, damping) * jnp.sum(moved**2, axis=1)


def effective_dimension(deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar) -> Float[Array, ""]:
    """`Σ h_i = tr S(S + μI)⁻¹ = Σ t/(t + λ)` over the eigenvalues t of 2ε²S; at most rank S."""
    return jnp.sum(shrinkage(jnp.linalg.eigvalsh(hessian(deltas, eps)), damping))


def duplicate_leverage(alone: Scalar, copies: Scalar) -> Scalar:
    """Leverage of each of k copies: `s/(1 + ks)`, where `s = (2ε²/n) δᵀ(2ε²S_rest + λI)⁻¹δ` leaves all k out of S."""
    return alone / (1 + copies * alone)


def duplicate_influence_bound(loss: Scalar, examples: Scalar, copies: Scalar) -> Scalar:
    """Score of a point present k times: `I_i ≤ 2(n/k) l_i`, because `h_i ≤ 1/k`."""
    return 2 * examples / copies * loss
