"""Define functions that several losses share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def unit(vectors: Float[Array, "*rows width"], axis: int = -1) -> Float[Array, "*rows width"]:
    """Divide vectors by their norm along `axis`; the zero vector stays zero.

    The derivative at the zero vector is zero. The largest entry is divided out first and is a constant to the
    derivative, because `v / ‖v‖` does not depend on the scale of `v`. So neither `‖v‖²` nor the inverse powers in its
    derivatives overflow or underflow.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=axis, keepdims=True))
    # NaN and infinity are not below `tiny`: they pass on as NaN, and only zeros are replaced.
    zero = largest < jnp.finfo(vectors.dtype).tiny
    scaled = jnp.where(zero, 1.0, vectors) / jnp.where(zero, 1.0, largest)
    return jnp.where(zero, 0.0, scaled / jnp.sqrt(jnp.sum(scaled**2, axis=axis, keepdims=True)))


def is_zero(vectors: Float[Array, "*rows width"]) -> Bool[Array, "*rows"]:
    """Mark the vectors that are zero, and so have no direction.

    A vector counts as zero if its largest entry is below the smallest normal number of its type.
    """
    return jnp.max(jnp.abs(vectors), axis=-1) < jnp.finfo(vectors.dtype).tiny


def standardise(embeddings: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Centre each column and divide it by its Euclidean norm.

    The product `AᵀB` of two such matrices is a correlation matrix. A constant column becomes zero. The first row is
    subtracted before the mean: in exact arithmetic this changes nothing, and in floating point it makes constant
    columns exactly zero and keeps the digits of columns far from zero.
    """
    shifted = embeddings - jax.lax.stop_gradient(embeddings[:1])
    return unit(shifted - jnp.mean(shifted, axis=0, keepdims=True), axis=0)


def covariance_square_root(logits: Float[Array, "rows classes"], noise: Float[Array, "rows classes"]) -> Array:
    """Multiply each row of noise by a square root of its softmax covariance.

    `S = diag(√p) − p √pᵀ`, so that `S Sᵀ = diag(p) − p pᵀ = ∇² log Σ exp(logits)`, where `p` is the softmax of a row.
    """
    p = jax.nn.softmax(logits, axis=1)
    drawn = jnp.sqrt(p) * noise
    return drawn - p * jnp.sum(drawn, axis=1, keepdims=True)
