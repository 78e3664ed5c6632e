"""Curvature × vector on plain vectors: what the matrix-free algorithms of `linalg` take."""

from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.matvec import matvec
from influence_ssl_jax.linalg.krylov import FlatMatvec
from influence_ssl_jax.problem import Problem


def flat_matvec(problem: Problem) -> FlatMatvec:
    """The map v ↦ C v on parameters ravelled into one vector (`trees.ravel`)."""
    product = matvec(problem)

    def flat(vector: Float[Array, " size"]) -> Float[Array, " size"]:
        return trees.ravel(product(trees.unravel(problem.params, vector)))

    return flat
