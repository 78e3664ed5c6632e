"""Exact scores of a network of any size where C is a sum of few outer products: the inverse is that of their Gram matrix."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import contributed, pooled, sampled
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch

Rows = Float[np.ndarray, "n size"]
_CHUNK = 1 << 15


class FunctionSpace(NamedTuple):
    """`C = AᵀA` by the eigenvectors of `AAᵀ`, and gradients g in them.

    Attributes:
        eigenvalues: μ of `AAᵀ`, which are those of C that are not zero.
        coordinates: `Vᵀ A g` of every gradient, V the eigenvectors of `AAᵀ`.
        squared_norms: ‖g‖².
        size: Number of parameters.
    """

    eigenvalues: Float[np.ndarray, " rank"]
    coordinates: Float[np.ndarray, "n rank"]
    squared_norms: Float[np.ndarray, " n"]
    size: int

    @property
    def mean_eigenvalue(self) -> float:
        """tr(C)/P."""
        return float(self.eigenvalues.sum()) / self.size

    def forms(self, damping: float) -> Float[np.ndarray, " n"]:
        """`gᵀ(C + λI)⁻¹g = (‖g‖² − (Ag)ᵀ(AAᵀ + λI)⁻¹Ag) / λ` of every gradient (Woodbury)."""
        inside = np.sum(self.coordinates**2 / (self.eigenvalues + damping), axis=1)
        return (self.squared_norms - inside) / damping


def rank_of(problem: Problem) -> int:
    """How many outer products C is a sum of.

    Raises:
        CurvatureError: It is none, or of too many to count on.
    """
    batches, size = problem.batches.index.shape
    if problem.curvature == "empirical_fisher":
        return batches * size
    if problem.curvature == "fisher":
        return batches * problem.samples * (size if problem.objective.loss.separable else 1)
    raise CurvatureError(
        "Exact scores in function space take a curvature that is a sum of outer products of gradients, 'fisher' or "
        f"'empirical_fisher', got curvature={problem.curvature!r}."
    )


def function_space(problem: Problem, gradients: Rows, max_rank: int = 4096) -> FunctionSpace:
    """Take C apart in function space, with the gradients whose forms are wanted.

    The gradients that C is made of are formed one batch at a time and kept, in the type of the parameters: memory is
    (rank + n) vectors of their size. Gram matrices are accumulated in float64, so that the forms are exact up to the
    rounding of those gradients.

    Args:
        problem: C, a sampled or empirical Fisher.
        gradients: The vectors g, as rows.
        max_rank: Refuse more outer products than this.

    Raises:
        CurvatureError: C is of another kind.
        InfluenceError: C is a sum of more outer products.
    """
    rank = rank_of(problem)
    if rank > max_rank:
        raise InfluenceError(
            f"This curvature is a sum of {rank:,} outer products, over the limit of {max_rank:,} for exact scores in "
            "function space. Take fewer curvature examples or samples, or certify scores by audit."
        )
    rows = np.concatenate([_rows(problem), gradients])
    gram = np.zeros((len(rows), len(rows)))
    for begin in range(0, rows.shape[1], _CHUNK):
        part = rows[:, begin : begin + _CHUNK].astype(np.float64)
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram[:rank, :rank])
    return FunctionSpace(
        np.maximum(values, 0.0), gram[rank:, :rank] @ vectors, np.diagonal(gram)[rank:].copy(), rows.shape[1]
    )


def _rows(problem: Problem) -> Rows:
    """The rows of A, `C = AᵀA`."""
    count = problem.batches.index.shape[0]

    def of_batch(problem: Problem, batch: Batch) -> Float[Array, "n size"]:
        if problem.curvature == "empirical_fisher":
            return materialised(contributed(problem, batch))
        if problem.objective.loss.separable:
            return materialised(sampled(problem, batch, problem.samples))
        return trees.ravel_batch(pooled(problem, batch, problem.samples))

    run = jax.jit(of_batch)
    draws = problem.samples if problem.curvature == "fisher" else 1
    parts = [
        np.asarray(run(problem, jax.tree.map(lambda leaf, i=i: leaf[i], problem.batches))) / math.sqrt(draws * count)
        for i in range(count)
    ]
    return np.concatenate(parts)


def materialised(gradients: ExampleGradients) -> Float[Array, "n size"]:
    """Every gradient as a row, a few at a time."""

    def one(pair: tuple[Array, Array]) -> Float[Array, " size"]:
        images, cotangents = pair
        _, backward = jax.vjp(lambda params: gradients.network(params, gradients.frozen, images), gradients.params)
        return trees.ravel(backward(cotangents)[0])

    pairs = jax.numpy.swapaxes(gradients.images, 0, 1), jax.numpy.swapaxes(gradients.cotangents, 0, 1)
    return jax.lax.map(one, pairs)
