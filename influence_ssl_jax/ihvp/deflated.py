"""Approximate the inverse by C's dominant eigenpairs, the rest by EK-FAC."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Resolved, gram_of_features, scalar
from influence_ssl_jax.ihvp.eigenbasis import (
    Coordinates,
    EigenbasisState,
    Scalars,
    coordinate_eigenvalues,
    eigendecompose,
    from_coordinates,
    project,
    project_trees,
    refuse_hessian,
    rotate,
    rotate_back,
    second_moments,
    to_coordinates,
)
from influence_ssl_jax.ihvp.ekfac import kronecker_bases, small_vectors
from influence_ssl_jax.linalg.krylov import leading_eigenpairs
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeflatedState:
    """The fitted curvature `C ≈ Qᵀ diag(θ) Q + Π K Π` with `Π = I − QᵀQ`.

    Attributes:
        values: θ.
        vectors: Q in the coordinates of K's bases, block by block: [rank, features].
        rest: K, an EK-FAC at full rank whose eigenvalues are those of deflated gradients `Π g`.
        mean: tr(C)/P.
    """

    values: Float[Array, " rank"]
    vectors: dict[str, Float[Array, "rank _"]]
    rest: EigenbasisState
    mean: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Deflated(Backend[DeflatedState]):
    """Deflated EK-FAC: `(C + λI)⁻¹ ≈ Qᵀ (θ + λ)⁻¹ Q + Π (K + λI)⁻¹ Π`.

    Q are the dominant Ritz vectors of C, and K is an EK-FAC of `Π C Π`. The subspace has the few large eigenvalues
    and their coupling between layers, which a block-diagonal approximation lacks. EK-FAC has the many small
    eigenvalues, which an affordable subspace lacks. K uses the Kronecker eigenbases of the gradients, and in them the
    second moments of the gradients' parts outside Q. Gradients of examples are formed in those bases, one batch at a
    time. It is exact at full rank.

    Attributes:
        rank: Number of eigenpairs in the subspace.
        block: Vectors multiplied at a time; eigenvalues of up to this multiplicity are found at once.
        expansion: Size of the Krylov space over `rank`; about rank · expansion products with C.
        restarts: Further cycles from the kept pairs.
        samples: Draws from N(0, ∇²head) for K, for each example or for each batch of a batch-coupled loss.
        exact_limit: Largest number of parameters of a block without a weight matrix whose eigenvectors are computed.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Deflated(rank=96)  # isj.score(encoder, images, backend=backend)
    """

    rank: int = 64
    block: int = 8
    expansion: float = 2.0
    restarts: int = 0
    samples: int = 1
    exact_limit: int = 2048
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "The best ranking, if a few hundred products with C are affordable."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(rank, samples=grid.samples) for rank in (*grid.ranks, *grid.deflated))

    def fit(self, problem: Problem, key: Key[Array, ""]) -> DeflatedState:
        """Compute the subspace, then correct the eigenvalues of an EK-FAC outside it."""
        refuse_hessian(problem, self)
        like = trees.ravel(problem.params)
        dimension = round(self.rank * self.expansion)
        pairs = leading_eigenpairs(flat_products(problem), key, like, self.rank, self.block, dimension, self.restarts)
        blocks = cut.discover_blocks(problem, self.unexplained)
        bases = kronecker_bases(problem, blocks, self.samples, None).bases
        directions = jax.vmap(lambda row: trees.unravel(problem.params, row))(pairs.vectors)
        vectors = project_trees(directions, blocks, bases)

        def deflate(coordinates: Coordinates) -> tuple[Coordinates, Scalars]:
            rows = _split(coordinates, vectors)[1]
            return rows, {name: jnp.sum(row**2) for name, row in rows.items()}

        moments, traces = second_moments(
            problem,
            self.samples,
            small_vectors(blocks, self.exact_limit),
            lambda gradients: deflate(project(gradients, blocks, bases)),
            lambda tree: deflate(project_trees(tree, blocks, bases)),
        )
        rest = eigendecompose(problem, blocks, bases, moments, traces, traces)
        values = jnp.maximum(pairs.values, 0.0)
        return DeflatedState(values, vectors, rest, (jnp.sum(values) + sum(traces.values())) / like.size)

    def mean_eigenvalue(self, state: DeflatedState) -> Resolved:
        """Return tr(C)/P: exact for the subspace, estimated for the rest."""
        return state.mean

    def smallest_eigenvalue(self, state: DeflatedState) -> Float[Array, ""]:
        """Return zero: C is positive semi-definite by construction."""
        return jnp.zeros_like(state.mean)

    def solve(self, state: DeflatedState, vector: Params, damping: Resolved) -> Params:
        """Compute `Qᵀ (θ + λ)⁻¹ Q v + Π (K + λI)⁻¹ Π v`."""
        cut.check_structure(state.rest.params, vector)
        blocks, bases = state.rest.blocks, state.rest.bases
        parts = {block.name: block.read(vector) for block in blocks}
        inside, outside = _split(
            {name: to_coordinates(part[None], bases[name]) for name, part in parts.items()}, state.vectors
        )
        solved = {name: _solve_rest(state.rest, name, rows, damping) for name, rows in outside.items()}
        _, outside = _split(solved, state.vectors)
        within = inside / (state.values + scalar(damping))[None]
        joined = {name: (rows + within @ state.vectors[name])[0] for name, rows in outside.items()}
        return cut.assemble(
            vector, blocks, {name: from_coordinates(joined[name], bases[name], part) for name, part in parts.items()}
        )

    def draw_gram(self, state: DeflatedState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute inner products of whitened coordinates, in the subspace and outside it."""
        forms = [gram_of_features(rows, gradients.draws) for rows in self._whiten(state, gradients, damping)]
        return Form(sum((form.values for form in forms[1:]), forms[0].values), forms[0].residual)

    def bilinear_form(
        self, state: DeflatedState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute the inner products of `draw_gram` between two batches."""
        sides = (self._whiten(state, gradients, damping) for gradients in (left, right))
        total, *others = (a @ b.T for a, b in zip(*sides, strict=True))
        return functools.reduce(jnp.add, others, total)

    def _whiten(
        self, state: DeflatedState, gradients: ExampleGradients, damping: Resolved
    ) -> list[Float[Array, "n features"]]:
        """Compute whitened coordinates in the subspace, then in every block's eigenbasis.

        They are `(θ + λ)^{-½} Q g`, and `(μ + λ)^{-½}` times the coordinates of `Π g`.
        """
        rest = state.rest
        inside, outside = _split(project(gradients, rest.blocks, rest.bases), state.vectors)
        parts = [inside / jnp.sqrt(state.values + scalar(damping))[None]]
        for name, rows in outside.items():
            weights = jnp.sqrt(coordinate_eigenvalues(rest, name) + scalar(damping))
            parts.append(rotate(rows, rest.rotations.get(name)) / weights[None])
        return parts


def _solve_rest(
    rest: EigenbasisState, name: str, rows: Float[Array, "n features"], damping: Resolved
) -> Float[Array, "n features"]:
    """Apply `(K + λI)⁻¹` to the coordinates of a block."""
    rotation, weights = rest.rotations.get(name), coordinate_eigenvalues(rest, name) + scalar(damping)
    return rotate_back(rotate(rows, rotation) / weights[None], rotation)


def _split(coordinates: Coordinates, vectors: dict[str, Array]) -> tuple[Float[Array, "n rank"], Coordinates]:
    """Compute `Q g` and the coordinates of `Π g`, from coordinates of g."""
    parts = [coordinates[name] @ rows.T for name, rows in vectors.items()]
    inside = sum(parts[1:], parts[0])
    return inside, {name: coordinates[name] - inside @ rows for name, rows in vectors.items()}
