"""Power iteration: the largest eigenvalue of a symmetric matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax.linalg.krylov import Rows


def largest_eigenvalue(
    products: Rows, key: Key[Array, ""], like: Float[Array, " size"], steps: int
) -> Float[Array, ""]:
    """`‖A u‖` after `steps` steps `u ← A u / ‖A u‖` from a random start: rises to the largest |eigenvalue| from below."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        unit, _size = carry
        product = products(unit[None])[0]
        size = jnp.linalg.norm(product)
        return (product / jnp.where(size > 0, size, 1.0), size), None

    start = jax.random.normal(key, like.shape, like.dtype)
    (_, size), _ = jax.lax.scan(step, (start / jnp.linalg.norm(start), jnp.zeros((), like.dtype)), None, steps)
    return size
