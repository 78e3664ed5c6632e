"""Curvature × vectors on plain rows: what the matrix-free algorithms of `linalg` take."""

from functools import partial

import jax
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.matvec import block_matvec
from influence_ssl_jax.linalg.krylov import Rows
from influence_ssl_jax.problem import Problem


def flat_products(problem: Problem) -> Rows:
    """The map V ↦ V C of rows, each the parameters ravelled into one vector (`trees.ravel`).

    Every batch of the curvature set is linearised once for all rows.
    """
    product, unravel = block_matvec(problem), partial(trees.unravel, problem.params)

    def rows(vectors: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
        return trees.ravel_batch(product(jax.vmap(unravel)(vectors)))

    return rows
