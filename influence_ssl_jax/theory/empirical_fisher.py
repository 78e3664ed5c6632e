"""Scores with the empirical Fisher `C = (1/n) Σ g_i g_iᵀ` in place of a Hessian.

Its scores are Mahalanobis norms of the gradients among themselves: they have degree 0 in ε and in W, and say nothing
about the size of the loss.
"""

from jaxtyping import Array, Float

from influence_ssl_jax.theory.linear import shrinkage
from influence_ssl_jax.theory.scalars import Scalar


def own_influence(gradient: Float[Array, " k"], damping: Scalar) -> Float[Array, ""]:
    """One point alone: `gᵀ(ggᵀ + λI)⁻¹g = ‖g‖²/(‖g‖² + λ) → 1` for every point."""
    return shrinkage(gradient @ gradient, damping)


def rank(examples: int, inputs: int, encoder_rank: int) -> int:
    """Rank of C for a linear encoder and generic perturbations: `min(n, rp − r(r−1)/2)` with `r = rank W`.

    The gradients `2ε²Wδδᵀ` span `{WS : S symmetric}`: rotation invariance removes r(r−1)/2 of the rp directions.
    """
    return min(examples, encoder_rank * inputs - encoder_rank * (encoder_rank - 1) // 2)


def total_influence(examples: int, rank: int) -> int:
    """`Σ_i g_iᵀC⁺g_i = n·rank C`; no single score exceeds n."""
    return examples * rank
