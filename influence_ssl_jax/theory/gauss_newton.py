"""Self-influence with a point's own Gauss–Newton matrix, for any differentiable encoder.

`l(θ) = ½‖r(θ)‖²`, `J = ∂r/∂θ`, `g = Jᵀr`, `K = JJᵀ`: one solve of the size of r, whatever the number of parameters.
Theorem 1 of arXiv 2412.17170 is this statement for a linear encoder.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.scalars import Scalar


def influence(residual: Float[Array, " d"], gram: Float[Array, "d d"], damping: Scalar) -> Float[Array, ""]:
    """`gᵀ(JᵀJ + λI)⁻¹g = rᵀK(K + λI)⁻¹r` (push-through identity, exact for λ > 0)."""
    return residual @ gram @ jnp.linalg.solve(gram + damping * jnp.eye(residual.size), residual)


def influence_limit(
    residual: Float[Array, " d"], jacobian: Float[Array, "d k"], cut: float = 1e-10
) -> Float[Array, ""]:
    """The limit λ → 0: `‖P_range(J) r‖²`, which is `2l` wherever J has full row rank.

    Args:
        residual: r.
        jacobian: J.
        cut: Singular values below `cut` times the largest count as zero.
    """
    basis, values, _ = jnp.linalg.svd(jacobian, full_matrices=False)
    inside = (residual @ basis) * (values > cut * values[0])
    return inside @ inside


def euclidean_residual(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, " d"]:
    """`r = √2 (f − f′)`, so that `½‖r‖² = ‖f − f′‖²`."""
    return jnp.sqrt(2.0) * (output - perturbed)


def cosine_residual(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, " d"]:
    """`r = f/‖f‖ − f′/‖f′‖`, so that `½‖r‖² = 1 − cos(f, f′)` exactly, and to full precision at small angles."""
    return output / jnp.linalg.norm(output) - perturbed / jnp.linalg.norm(perturbed)
