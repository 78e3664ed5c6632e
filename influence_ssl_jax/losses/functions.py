"""Functions that several losses share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def unit(vectors: Float[Array, "*rows width"], axis: int = -1) -> Float[Array, "*rows width"]:
    """`v / ‖v‖` along `axis`; the zero vector stays zero, with zero derivative.

    The largest entry is divided out first. It is a constant to the derivative, because `v / ‖v‖` does not depend on the
    scale of `v`; so neither ‖v‖² nor its inverse powers in the derivatives overflow or underflow.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=axis, keepdims=True))
    # NaN and infinity compare false with `<` and pass on as NaN: only true zeros are replaced.
    zero = largest < jnp.finfo(vectors.dtype).tiny
    scaled = jnp.where(zero, 1.0, vectors) / jnp.where(zero, 1.0, largest)
    return jnp.where(zero, 0.0, scaled / jnp.sqrt(jnp.sum(scaled**2, axis=axis, keepdims=True)))


def is_zero(vectors: Float[Array, "*rows width"]) -> Bool[Array, "*rows"]:
    """Which rows are zero to their last digit, and so have no direction."""
    return jnp.max(jnp.abs(vectors), axis=-1) < jnp.finfo(vectors.dtype).tiny


def standardised(embeddings: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Each column centred and divided by its Euclidean norm, so that `AᵀB` of two of them is a correlation matrix.

    A constant column becomes zero. One row is subtracted before the mean, which changes nothing in exact arithmetic,
    makes constant columns exactly zero, and keeps the digits of columns far from zero.
    """
    shifted = embeddings - jax.lax.stop_gradient(embeddings[:1])
    return unit(shifted - jnp.mean(shifted, axis=0, keepdims=True), axis=0)


def covariance_square_root(logits: Float[Array, "rows classes"], noise: Float[Array, "rows classes"]) -> Array:
    """`S · noise` row by row, `S = diag(√p) − p √pᵀ`, so that `S Sᵀ = diag(p) − p pᵀ = ∇² log Σ exp(logits)`."""
    p = jax.nn.softmax(logits, axis=1)
    drawn = jnp.sqrt(p) * noise
    return drawn - p * jnp.sum(drawn, axis=1, keepdims=True)
