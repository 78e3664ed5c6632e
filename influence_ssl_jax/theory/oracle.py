"""Compute closed forms' references: dense algebra, automatic differentiation, exact quadrature."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.theory.item import Scalar


class Derivatives(NamedTuple):
    """Gradient and Hessian of a scalar function, in row-major order.

    The function is of a vector or matrix.
    """

    gradient: Float[Array, " k"]
    hessian: Float[Array, "k k"]


def relative(actual: Float[Array, "*shape"] | float, expected: Float[Array, "*shape"] | float) -> Float[Array, ""]:
    """Return the largest absolute difference over the largest expected magnitude.

    It is 0 if both are zero everywhere.
    """
    scale = jnp.max(jnp.abs(jnp.asarray(expected)))
    return jnp.max(jnp.abs(actual - expected)) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def derivatives(function: Callable[[Array], Array], at: Float[Array, "*shape"]) -> Derivatives:
    """Compute gradient and Hessian by automatic differentiation.

    Args:
        function: A scalar function.
        at: The point.
    """

    def flat(vector: Float[Array, " k"]) -> Float[Array, ""]:
        return function(vector.reshape(at.shape))

    return Derivatives(gradient=jax.grad(flat)(at.ravel()), hessian=jax.hessian(flat)(at.ravel()))


def quadratic(matrix: Float[Array, "k k"], vector: Float[Array, " k"], damping: Scalar) -> Float[Array, ""]:
    """Compute `vᵀ(M + λI)⁻¹v` by a dense solve."""
    return vector @ jnp.linalg.solve(matrix + damping * jnp.eye(vector.size), vector)


def pseudo_quadratic(matrix: Float[Array, "k k"], vector: Float[Array, " k"], cut: float = 1e-10) -> Float[Array, ""]:
    """Compute `vᵀM⁺v` by eigendecomposition.

    Eigenvalues below `cut` times the largest count as zero.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    kept = jnp.abs(values) > cut * jnp.max(jnp.abs(values))
    return jnp.sum(jnp.where(kept, (vector @ vectors) ** 2 / jnp.where(kept, values, 1.0), 0.0))


def alignment(weight: Float[Array, "d p"], x: Float[Array, " p"], perturbed: Float[Array, " p"]) -> Float[Array, ""]:
    """Compute the alignment loss of a linear encoder by its definition, `‖Wx − Wx′‖²`."""
    return jnp.sum((weight @ x - weight @ perturbed) ** 2)


def cosine(output: Float[Array, " d"], perturbed: Float[Array, " d"]) -> Float[Array, ""]:
    """Compute the cosine distance by its definition, `1 − u·v/(‖u‖‖v‖)`."""
    return 1 - (output @ perturbed) / (jnp.linalg.norm(output) * jnp.linalg.norm(perturbed))


def deep(layers: Sequence[Float[Array, "_ _"]], vector: Float[Array, " p"]) -> Float[Array, " d"]:
    """Apply a deep linear network."""
    for layer in layers:
        vector = layer @ vector
    return vector


def normal_expectation(function: Callable[[Array], Array], size: int, nodes: int = 4) -> Array:
    """Compute `E f(z)` for `z ~ N(0, I)` by Gauss–Hermite quadrature.

    It is exact for polynomials of degree up to `2·nodes − 1` in each coordinate.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[points] * size, indexing="ij"), axis=-1).reshape(-1, size)
    product = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * size, indexing="ij")), axis=0).ravel()
    return jnp.tensordot(jnp.asarray(product), jax.vmap(function)(jnp.asarray(grid)), axes=1)
