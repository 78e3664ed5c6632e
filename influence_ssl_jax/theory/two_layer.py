"""Two linear layers `W = W₂W₁`: Definition 2, Lemmas 1–2, and Theorem 1 in the parameters (W₁, W₂).

arXiv 2412.17170, Appendix C.1; reconstructed. Regression loss `L = ½‖W₂W₁x − y‖²`, error `e = W₂W₁x − y`; row-major.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.gauss_newton import influence as gauss_newton_influence
from influence_ssl_jax.theory.scalars import Scalar


class Gradients(NamedTuple):
    """Gradients of the regression loss in the two layers."""

    first: Float[Array, "h p"]
    second: Float[Array, "d h"]


class HessianBlocks(NamedTuple):
    """Blocks of the regression Hessian in (vec W₁, vec W₂)."""

    first: Float[Array, "hp hp"]
    cross: Float[Array, "hp dh"]
    second: Float[Array, "dh dh"]


def gradients(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"], y: Float[Array, " d"]
) -> Gradients:
    """Lemma 1: `∇W₁ = W₂ᵀ e xᵀ`, `∇W₂ = e (W₁x)ᵀ`."""
    hidden = first @ x
    error = second @ hidden - y
    return Gradients(first=jnp.outer(second.T @ error, x), second=jnp.outer(error, hidden))


def hessian(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"], y: Float[Array, " d"]
) -> HessianBlocks:
    """Lemma 2: `H₁₁ = W₂ᵀW₂ ⊗ xxᵀ`, `H₂₂ = I_d ⊗ zzᵀ` with `z = W₁x`, and `H₁₂` with both of its terms.

    `H₁₂[(b,i),(a,c)] = W₂[a,b] x_i z_c + e_a 1{b=c} x_i`: the Gauss–Newton term and the residual curvature.
    """
    hidden = first @ x
    residual = jnp.einsum("a,bc,i->biac", second @ hidden - y, jnp.eye(hidden.size), x).reshape(first.size, second.size)
    gauss_newton = gauss_newton_hessian(first, second, x)
    return gauss_newton._replace(cross=gauss_newton.cross + residual)


def gauss_newton_hessian(
    first: Float[Array, "h p"], second: Float[Array, "d h"], x: Float[Array, " p"]
) -> HessianBlocks:
    """Lemma 2 without the residual term: the Hessian where `e = 0`, the Gauss–Newton matrix everywhere."""
    hidden = first @ x
    return HessianBlocks(
        first=jnp.kron(second.T @ second, jnp.outer(x, x)),
        cross=jnp.einsum("ab,i,c->biac", second, x, hidden).reshape(first.size, second.size),
        second=jnp.kron(jnp.eye(second.shape[0]), jnp.outer(hidden, hidden)),
    )


def joint(blocks: HessianBlocks) -> Float[Array, "all all"]:
    """The blocks as one symmetric matrix."""
    return jnp.block([[blocks.first, blocks.cross], [blocks.cross.T, blocks.second]])


def alignment_gram(
    first: Float[Array, "h p"], second: Float[Array, "d h"], delta: Float[Array, " p"], eps: Scalar
) -> Float[Array, "d d"]:
    """`K = JJᵀ = 2ε²(‖W₁δ‖² I_d + ‖δ‖² W₂W₂ᵀ)` of the residual `r = √2 ε W₂W₁δ`."""
    perturbation = eps * delta
    hidden = first @ perturbation
    return 2 * ((hidden @ hidden) * jnp.eye(second.shape[0]) + (perturbation @ perturbation) * (second @ second.T))


def alignment_influence(
    first: Float[Array, "h p"], second: Float[Array, "d h"], delta: Float[Array, " p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Theorem 1 in (W₁, W₂) with the Gauss–Newton matrix: `rᵀK(K + λI)⁻¹r → 2l`; not `I_λ` of the product W."""
    residual = jnp.sqrt(2.0) * (second @ (first @ (eps * delta)))
    return gauss_newton_influence(residual, alignment_gram(first, second, delta, eps), damping)
