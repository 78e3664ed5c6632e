"""The mean eigenvalue of C, from which relative damping is resolved."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.matvec import matvec
from influence_ssl_jax.problem import Problem


def mean_eigenvalue(problem: Problem, key: Key[Array, ""], probes: int) -> Float[Array, ""]:
    """tr(C) / P by Hutchinson's estimator: the mean of ⟨v, C v⟩ over random signs v, divided by the parameter count.

    Its relative standard error is below √(2 / (probes · r)), `r = tr(C)² / ‖C‖_F²` the effective rank of C.
    """
    product = matvec(problem)

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        signs = trees.rademacher_like(key, problem.params)
        return trees.dot(signs, product(signs))

    return jnp.mean(jax.lax.map(one, jax.random.split(key, probes))) / trees.size(problem.params)
