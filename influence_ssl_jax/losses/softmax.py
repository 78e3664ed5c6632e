"""The covariance of a categorical distribution: the Hessian of log-sum-exp."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def covariance_square_root(logits: Float[Array, "rows classes"], noise: Float[Array, "rows classes"]) -> Array:
    """`S · noise` row by row, `S = diag(√p) − p √pᵀ`, so that `S Sᵀ = diag(p) − p pᵀ = ∇² log Σ exp(logits)`."""
    p = jax.nn.softmax(logits, axis=1)
    drawn = jnp.sqrt(p) * noise
    return drawn - p * jnp.sum(drawn, axis=1, keepdims=True)
