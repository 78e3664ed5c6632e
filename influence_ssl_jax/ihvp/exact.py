"""Invert the dense curvature matrix through all its eigenpairs."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.blocks import check_structure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import matvec
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Resolved, Spectrum, gram_of_features, scalar
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactState:
    """The fitted curvature `C = V diag(μ) Vᵀ`.

    Attributes:
        params: Parameters at which C was computed; they define the structure of vectors.
        eigenvalues: μ, ascending.
        eigenvectors: V, orthonormal columns.
    """

    params: Params
    eigenvalues: Float[Array, " size"]
    eigenvectors: Float[Array, "size size"]


@dataclasses.dataclass(frozen=True)
class Exact(Backend[ExactState]):
    """The dense reference for small networks: `(C + λI)⁻¹ = V (diag(μ) + λI)⁻¹ Vᵀ`.

    C is formed column by column.

    Attributes:
        max_parameters: Largest number P of parameters; the matrix needs P² numbers, its eigenvectors P³ operations.
        chunk: Number of columns formed at a time.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Exact(max_parameters=5000)  # isj.score(encoder, images, backend=backend)
    """

    max_parameters: int = 20_000
    chunk: int = 64
    when_to_use: ClassVar[str] = "The reference for networks of up to a few thousand parameters."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return (cls(max_parameters=grid.dense),)

    def fit(self, problem: Problem, key: Key[Array, ""]) -> ExactState:
        """Form C and compute its eigenpairs.

        Raises:
            InfluenceError: If the network has more than `max_parameters` parameters.
        """
        del key
        flat = trees.ravel(problem.params)
        if flat.size > self.max_parameters:
            raise InfluenceError(
                f"Exact forms the whole curvature matrix, {flat.size:,}² entries, over its limit of {self.max_parameters:,} "
                "parameters. Use CG for exact solves without the matrix, LoGra to score many examples, or a smaller network."
            )
        product = matvec(problem)

        def column(vector: Float[Array, " size"]) -> Float[Array, " size"]:
            return trees.ravel(product(trees.unravel(problem.params, vector)))

        columns = jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype), batch_size=self.chunk)
        values, vectors = jnp.linalg.eigh((columns + columns.T) / 2)
        if problem.curvature != "hessian":
            values = jnp.maximum(values, 0.0)  # positive semi-definite by construction: negative values are rounding
        return ExactState(problem.params, values, vectors)

    def mean_eigenvalue(self, state: ExactState) -> Resolved:
        """Return the mean of μ."""
        return jnp.mean(state.eigenvalues)

    def smallest_eigenvalue(self, state: ExactState) -> Float[Array, ""]:
        """Return the smallest μ."""
        return state.eigenvalues[0]

    def spectrum(self, state: ExactState) -> Spectrum:
        """Return μ.

        Raises:
            CurvatureError: If C is indefinite: an effective dimension counts positive eigenvalues.
        """
        least, most = float(state.eigenvalues[0]), float(state.eigenvalues[-1])
        if least < -float(jnp.finfo(state.eigenvalues.dtype).eps) * state.eigenvalues.size * most:
            raise CurvatureError(
                "An effective dimension, or a mean over nonzero eigenvalues, needs a positive semi-definite C; the "
                f"smallest eigenvalue of this C is {least:.3g}. Use curvature 'ggn', 'fisher' or 'empirical_fisher', or "
                "give relative or absolute damping."
            )
        return Spectrum(state.eigenvalues, jnp.ones_like(state.eigenvalues))

    def solve(self, state: ExactState, vector: Params, damping: Resolved) -> Params:
        """Compute `V (μ + λ)⁻¹ Vᵀ v`."""
        check_structure(state.params, vector)
        coordinates = trees.ravel(vector) @ state.eigenvectors
        return trees.unravel(state.params, state.eigenvectors @ (coordinates / (state.eigenvalues + scalar(damping))))

    def draw_gram(self, state: ExactState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute inner products of `(μ + λ)^{-½} Vᵀ g`."""
        return gram_of_features(self._whiten(state, gradients, damping), gradients.draws)

    def bilinear_form(
        self, state: ExactState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute inner products of `(μ + λ)^{-½} Vᵀ g` between two batches."""
        return self._whiten(state, left, damping) @ self._whiten(state, right, damping).T

    def _whiten(self, state: ExactState, gradients: ExampleGradients, damping: Resolved) -> Float[Array, "n size"]:
        """Compute `(μ + λ)^{-½} Vᵀ g` of every gradient."""
        rows = trees.ravel_batch(gradients.full()) @ state.eigenvectors
        return rows / jnp.sqrt(state.eigenvalues + scalar(damping))[None]
