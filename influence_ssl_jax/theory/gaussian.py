"""Gaussian perturbations `η ~ N(m, σ²I_p)`: moments of the score, and what averaging over draws estimates.

Linear encoder, `Γ = WᵀW`. The noise of arXiv 2412.17170's experiments; derived for this project. The mean is 0 unless
said. Every input has the same second moment, so the between term of Proposition 2 vanishes: whatever ranks examples
under isotropic noise comes from the encoder not being linear.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.scalars import Scalar


def energy_mean(weight: Float[Array, "d p"], mean: Float[Array, " p"], sigma: Scalar) -> Float[Array, ""]:
    """`E‖Wη‖² = σ²‖W‖_F² + ‖Wm‖²`; the score `I_0 = 2‖Wη‖²` has twice this mean."""
    moved = weight @ mean
    return sigma**2 * jnp.sum(weight**2) + moved @ moved


def energy_variance(weight: Float[Array, "d p"], mean: Float[Array, " p"], sigma: Scalar) -> Float[Array, ""]:
    """`Var‖Wη‖² = 2σ⁴‖Γ‖_F² + 4σ² mᵀΓ²m`; the score has four times this variance."""
    pulled = weight.T @ (weight @ mean)
    return 2 * sigma**4 * jnp.sum((weight.T @ weight) ** 2) + 4 * sigma**2 * (pulled @ pulled)


def effective_rank(weight: Float[Array, "d p"]) -> Float[Array, ""]:
    """`r = (tr Γ)²/‖Γ‖_F²`, between 1 and rank W."""
    return jnp.sum(weight**2) ** 2 / jnp.sum((weight.T @ weight) ** 2)


def relative_spread(weight: Float[Array, "d p"], draws: Scalar) -> Float[Array, ""]:
    """Standard deviation over mean of a score averaged over K draws: `√(2/(K r))`."""
    return jnp.sqrt(2 / (draws * effective_rank(weight)))


def single_draw_score(weight: Float[Array, "d p"], curvature: Float[Array, "p p"], sigma: Scalar) -> Float[Array, ""]:
    """`E gᵀA⁻¹g` of one draw under a fixed curvature `I_d ⊗ A`: `4σ⁴(tr Γ·tr A⁻¹ + 2 tr ΓA⁻¹)` (Isserlis).

    Args:
        weight: W.
        curvature: A, damping included, positive definite.
        sigma: σ.
    """
    inverse_trace = jnp.trace(jnp.linalg.solve(curvature, jnp.eye(curvature.shape[0])))
    noise = 4 * sigma**4 * (jnp.sum(weight**2) * inverse_trace)
    return noise + 2 * mean_gradient_score(weight, curvature, sigma)


def mean_gradient_score(weight: Float[Array, "d p"], curvature: Float[Array, "p p"], sigma: Scalar) -> Float[Array, ""]:
    """`ḡᵀA⁻¹ḡ` of the gradient of the expected loss, `ḡ = 2σ²W`: `4σ⁴ tr ΓA⁻¹`."""
    return 4 * sigma**4 * jnp.sum(weight.T * jnp.linalg.solve(curvature, weight.T))


def averaged_gradient_score(single: Scalar, mean_gradient: Scalar, draws: Scalar) -> Scalar:
    """Expected score of a gradient averaged over K draws: `E_m + (E_s − E_m)/K`; biased, the bias falls as 1/K."""
    return mean_gradient + (single - mean_gradient) / draws


def isotropic_ratio(inputs: Scalar) -> Scalar:
    """`E_s/E_m = p + 2` for `A = aI`: a single draw's score is almost all draw."""
    return inputs + 2


def cross_draw_score(gradients: Float[Array, "draws k"], curvature: Float[Array, "k k"]) -> Float[Array, ""]:
    """U-statistic `(1/(K(K−1))) Σ_{k≠l} g_kᵀA⁻¹g_l`: unbiased for `mean_gradient_score`, and may be negative."""
    draws = gradients.shape[0]
    pairs = gradients @ jnp.linalg.solve(curvature, gradients.T)
    return (jnp.sum(pairs) - jnp.trace(pairs)) / (draws * (draws - 1))


def local_distance(jacobian: Float[Array, "d p"], sigma: Scalar) -> Float[Array, ""]:
    """Any smooth encoder at small σ: `E‖f(x + η) − f(x)‖² = σ²‖J_f(x)‖_F² + O(σ⁴)`."""
    return sigma**2 * jnp.sum(jacobian**2)


def local_cosine_distance(output: Float[Array, " d"], jacobian: Float[Array, "d p"], sigma: Scalar) -> Float[Array, ""]:
    """The cosine distance at small σ: `σ²‖P_⊥ J_f(x)‖_F²/(2‖f(x)‖²) + O(σ⁴)`."""
    direction = output / jnp.linalg.norm(output)
    across = jacobian - jnp.outer(direction, direction @ jacobian)
    return sigma**2 * jnp.sum(across**2) / (2 * (output @ output))
