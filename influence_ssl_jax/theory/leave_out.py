"""Leaving examples out, exactly, where influence functions are exact up to a known factor.

Anchored objective `F(W) = (1/n) Σ ε²‖Wδ_i‖² + (λ/2)‖W − W₀‖_F²`; its Hessian is `I_d ⊗ A`, `A = 2ε²S + λI`: damping is
no approximation here and the minimiser is stationary. `h_i` are the leverages of `leverage`. Derived for this project.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory import leverage
from influence_ssl_jax.theory.scalars import Scalar


def optimum(
    anchor: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "d p"]:
    """Minimiser `W* = λW₀A⁻¹`."""
    damped = leverage.hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    return damping * jnp.linalg.solve(damped, anchor.T).T


def predicted_steps(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "n d p"]:
    """What influence functions predict for removing point i: `(1/n) G_i A⁻¹`, `G_i = 2ε²W*δ_iδ_iᵀ`."""
    perturbations = eps * deltas
    damped = leverage.hessian(deltas, eps) + damping * jnp.eye(deltas.shape[1])
    directions = 2 * jnp.linalg.solve(damped, perturbations.T).T / deltas.shape[0]
    return jnp.einsum("nd,np->ndp", perturbations @ weight.T, directions)


def exact_steps(
    weight: Float[Array, "d p"], deltas: Float[Array, "n p"], eps: Scalar, damping: Scalar
) -> Float[Array, "n d p"]:
    """What happens: `W₋ᵢ − W* = (1/(1 − h_i))·(1/n) G_i A⁻¹`.

    Args:
        weight: W* of `optimum`.
        deltas: All perturbations, one per row.
        eps: ε.
        damping: λ > 0.
    """
    keep = 1 - leverage.leverages(deltas, eps, damping)
    return predicted_steps(weight, deltas, eps, damping) / keep[:, None, None]


def exact_loss_change(loss: Float[Array, " n"], leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """`l_i(W₋ᵢ) − l_i(W*) = l_i h(2 − h)/(1 − h)²`."""
    return loss * leverages * (2 - leverages) / (1 - leverages) ** 2


def predicted_loss_change(loss: Float[Array, " n"], leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """Influence functions say `I_i/n = 2h_i l_i`."""
    return 2 * leverages * loss


def underestimate(leverages: Float[Array, " n"]) -> Float[Array, " n"]:
    """Exact over predicted: `(1 − h/2)/(1 − h)²`, at least 1 and unbounded as h → 1."""
    return (1 - leverages / 2) / (1 - leverages) ** 2


def group_outputs(outputs: Float[Array, "d k"], group_gram: Float[Array, "k k"]) -> Float[Array, "d k"]:
    """Removing a group S: `W₋S D_S = W* D_S (I − H_SS)⁻¹`, the columns of D_S being its δ_i.

    Additive over the members where `H_SS` is diagonal: the exact analogue of Claim 6.

    Args:
        outputs: `W* D_S`.
        group_gram: `H_SS = (2ε²/n) D_Sᵀ A⁻¹ D_S`, the group's block of `leverage.gram`.
    """
    return jnp.linalg.solve(jnp.eye(group_gram.shape[0]) - group_gram.T, outputs.T).T


def renormalised_damping(damping: Scalar, examples: Scalar) -> Scalar:
    """Retraining with weight 1/(n − 1) at λ is the 1/n problem at `λ(n − 1)/n`."""
    return damping * (examples - 1) / examples
