"""Expected influence and deviations from it: Definition 1 and Proposition 2 (arXiv 2412.17170, §4.4; reconstructed).

Linear encoder, λ = 0 unless said. `Σ_x = E[δδᵀ | x]` is an input's second moment of perturbations, `Σ = E[δδᵀ]` the
population's.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.linear import shrinkage
from influence_ssl_jax.theory.scalars import Scalar


def mean_distance(weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar) -> Float[Array, ""]:
    """Definition 1 of the appendix: `D = E‖Wx − Wa(x)‖² = ε² tr(WᵀW Σ)`."""
    return eps**2 * _inner(weight, moment)


def mean_influence(weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar) -> Float[Array, ""]:
    """Definition 1 of the main text: `Ī = E I_0 = 2ε² tr(WᵀW Σ)`, twice `mean_distance`."""
    return 2 * eps**2 * _inner(weight, moment)


def averaged_loss_influence(
    weight: Float[Array, "d p"], moment: Float[Array, "p p"], eps: Scalar, damping: Scalar
) -> Float[Array, ""]:
    """Influence of a loss averaged over draws, with its own Hessian: `4ε⁴ tr(W Σ_x (2ε²Σ_x + λ)⁻¹ Σ_x Wᵀ)`.

    As λ → 0 it is `mean_influence` at Σ_x.
    """
    values, vectors = jnp.linalg.eigh(2 * eps**2 * moment)
    energy = jnp.sum((weight @ vectors) ** 2, axis=0)
    return jnp.sum(energy * values * shrinkage(values, damping))


def within(
    weight: Float[Array, "d p"], delta: Float[Array, " p"], moment: Float[Array, "p p"], eps: Scalar
) -> Float[Array, ""]:
    """This draw against its input: `2ε²⟨WᵀW, δδᵀ − Σ_x⟩`; mean zero given x, so it is noise of the draw.

    Args:
        weight: W.
        delta: The draw δ.
        moment: Σ_x of the same input.
        eps: ε.
    """
    return 2 * eps**2 * _inner(weight, jnp.outer(delta, delta) - moment)


def between(
    weight: Float[Array, "d p"], moment: Float[Array, "p p"], population: Float[Array, "p p"], eps: Scalar
) -> Float[Array, ""]:
    """This input against the population: `2ε²⟨WᵀW, Σ_x − Σ⟩`; `within + between = I − Ī` (Proposition 2 corrected)."""
    return 2 * eps**2 * _inner(weight, moment - population)


def reliability(between_variance: Scalar, within_variance: Scalar, draws: Scalar) -> Scalar:
    """Correlation of two independent scorings with K draws each: `V_b/(V_b + V_w/K)`."""
    return between_variance / (between_variance + within_variance / draws)


def _inner(weight: Float[Array, "d p"], moment: Float[Array, "p p"]) -> Float[Array, ""]:
    """`⟨WᵀW, M⟩_F = tr(W M Wᵀ)`."""
    return jnp.sum((weight @ moment) * weight)
