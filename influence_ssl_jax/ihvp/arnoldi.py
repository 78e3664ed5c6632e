"""Approximate the inverse by dominant eigenpairs of C (Arnoldi influence)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.products import flat_products, standard_error
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp.backend import Backend, Form, Grid, Interval, Resolved, Workspace, scalar
from influence_ssl_jax.ihvp.rounding import Lengths
from influence_ssl_jax.linalg.krylov import leading_eigenpairs
from influence_ssl_jax.problem import Curvature, Problem
from influence_ssl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArnoldiState:
    """The fitted curvature `C ≈ Qᵀ diag(θ) Q + level · (I − QᵀQ)`.

    Attributes:
        params: Parameters, which define the structure of vectors.
        values: θ.
        vectors: Q, orthonormal rows.
        coupling: Row k is the part of `C q_k` outside Q, in some orthonormal basis (`linalg.krylov.Subspace`).
        level: Mean eigenvalue of C outside Q.
        mean: tr(C)/P.
        error: Its relative standard error.
        smallest: Smallest Ritz value; zero if C is positive semi-definite by construction.
        blocks: The blocks, for per-example norms.
        curvature: The kind of curvature of C.
    """

    params: Params
    values: Float[Array, " rank"]
    vectors: Float[Array, "rank size"]
    coupling: Float[Array, "rank block"]
    level: Float[Array, ""]
    mean: Float[Array, ""]
    error: Float[Array, ""]
    smallest: Float[Array, ""]
    blocks: cut.Blocks = dataclasses.field(metadata={"static": True})
    curvature: Curvature = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Arnoldi(Backend[ArnoldiState]):
    """Arnoldi: `(C + λI)⁻¹ ≈ Qᵀ (θ + λ)⁻¹ Q + (I − QᵀQ) / (level + λ)`.

    Q are the Ritz vectors of largest |θ|. Scoring computes `⟨g_n, q_k⟩` by forward-mode products, one pass for each
    q_k and batch. No gradient of an example is formed, and layers need to be known only for norms
    (`complement="keep"`). It is exact at full rank.
    Reference: arXiv 2112.03052 (Scaling Up Influence Functions), which drops the complement. Block Lanczos replaces
    the single vector, because Kronecker-like curvature has repeated eigenvalues.

    Attributes:
        rank: Number of eigenpairs kept.
        block: Vectors multiplied at a time; eigenvalues of up to this multiplicity are found at once.
        expansion: Size of the Krylov space over `rank`; about rank · expansion products with C.
        restarts: Further cycles from the kept pairs, each of about rank · (expansion − 1) products.
        complement: "keep" what lies outside Q, at its mean eigenvalue; or "drop" it.
        probes: Random vectors for that mean.
        unexplained: How to treat parameters that no known layer explains.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> backend = isj.Arnoldi(rank=128, complement="drop")  # isj.score(encoder, images, backend=backend)
    """

    rank: int = 64
    block: int = 8
    expansion: float = 2.0
    restarts: int = 0
    complement: Literal["keep", "drop"] = "keep"
    probes: int = 16
    unexplained: cut.Unexplained = "error"
    when_to_use: ClassVar[str] = "An interval for every image, once audited; any network."

    @classmethod
    def variants(cls, grid: Grid) -> Sequence[Backend]:
        """Return the settings that a comparison tries."""
        return tuple(cls(rank, complement=rest, probes=grid.probes) for rank in grid.ranks for rest in ("keep", "drop"))

    @property
    def definite(self) -> bool:
        """Whether the complement is kept."""
        return self.complement == "keep"

    def fit(self, problem: Problem, key: Key[Array, ""]) -> ArnoldiState:
        """Compute the Ritz pairs, then estimate the trace of the rest."""
        products, like = flat_products(problem), trees.ravel(problem.params)
        krylov_key, trace_key = jax.random.split(key)
        dimension = round(self.rank * self.expansion)
        pairs = leading_eigenpairs(products, krylov_key, like, self.rank, self.block, dimension, self.restarts)

        signs = randomness.signs(trace_key, (self.probes, like.size), like.dtype)
        rest = signs - (signs @ pairs.vectors.T) @ pairs.vectors
        of_probes = jnp.sum(rest * products(rest), axis=1)
        trace = jnp.mean(of_probes)
        semidefinite = problem.curvature != "hessian"
        level = trace / jnp.maximum(like.size - jnp.sum(pairs.vectors**2), 0.5)  # 0.5: at full rank both are zero
        return ArnoldiState(
            params=problem.params,
            # If C is positive semi-definite by construction, only rounding makes a value negative.
            values=jnp.maximum(pairs.values, 0.0) if semidefinite else pairs.values,
            vectors=pairs.vectors,
            coupling=pairs.coupling,
            level=jnp.maximum(level, 0.0) if semidefinite else jnp.maximum(level, pairs.smallest),
            mean=(jnp.sum(pairs.values) + trace) / like.size,
            error=standard_error(of_probes) / jnp.abs(jnp.sum(pairs.values) + trace),
            smallest=jnp.zeros_like(level) if semidefinite else pairs.smallest,
            # Without the complement no norm is needed; bounds may still be requested, and then form what no layer explains.
            blocks=cut.discover_blocks(problem, self.unexplained if self.complement == "keep" else "materialise"),
            curvature=problem.curvature,
        )

    def mean_eigenvalue(self, state: ArnoldiState) -> Resolved:
        """Return tr(C)/P: exact for the kept part, estimated for the rest."""
        return state.mean

    def mean_error(self, state: ArnoldiState) -> Float[Array, ""]:
        """Return the relative standard error, from the spread of the rest's probes."""
        return state.error

    def smallest_eigenvalue(self, state: ArnoldiState) -> Float[Array, ""]:
        """Return a Hessian's smallest Ritz value, kept or not; zero otherwise."""
        return state.smallest

    def workspace(self, state: ArnoldiState, parameters: int) -> Workspace:
        """Return the size of one more Q, shaped as the parameters.

        No gradient of an example is formed.
        """
        return Workspace(state.vectors.size + 2 * parameters, 0)

    def solve(self, state: ArnoldiState, vector: Params, damping: Resolved) -> Params:
        """Compute `Qᵀ (θ + λ)⁻¹ Q v`, and divide what lies outside Q by `level + λ`."""
        cut.check_structure(state.params, vector)
        flat = trees.ravel(vector)
        weights, outside = self._weights(state, damping)
        return trees.unravel(state.params, ((state.vectors @ flat) * weights) @ state.vectors + outside * flat)

    def draw_gram(self, state: ArnoldiState, gradients: ExampleGradients, damping: Resolved) -> Form:
        """Compute weighted inner products of `Q g`; with the complement, also of gradients."""
        weights, outside = self._weights(state, damping)
        rows = coordinates(state, gradients)
        drawn = rows.reshape(gradients.draws, -1, rows.shape[1])
        values = jnp.einsum("kbf,f,lbf->bkl", drawn, weights, drawn)
        if self.complement == "keep":
            values = values + outside * gradients.gram(state.blocks)
        return Form(values, jnp.zeros(values.shape[0], values.dtype))

    def bilinear_form(
        self, state: ArnoldiState, left: ExampleGradients, right: ExampleGradients, damping: Resolved
    ) -> Float[Array, "left right"]:
        """Compute the form of `draw_gram` between two batches."""
        weights, outside = self._weights(state, damping)
        total = (coordinates(state, left) * weights[None]) @ coordinates(state, right).T
        if self.complement == "drop":
            return total
        return total + outside * sum(block.cross_products(left, right) for block in state.blocks)

    def _weights(self, state: ArnoldiState, damping: Resolved) -> tuple[Float[Array, " rank"], Array]:
        """Return the weights of the coordinates and of the vector itself.

        They are `1/(θ + λ) − 1/(level + λ)` and `1/(level + λ)`; if the complement is dropped, `1/(θ + λ)` and zero.
        """
        inside = 1 / (state.values + scalar(damping))
        if self.complement == "drop":
            return inside, jnp.zeros_like(state.level)
        outside = 1 / (state.level + scalar(damping))
        return inside - outside, outside


def measure_residuals(state: ArnoldiState, problem: Problem) -> ArnoldiState:
    """Measure `C q_k − θ_k q_k` of every Ritz pair by products, rounding included.

    It needs `rank` products.

    Returns:
        The state with the residuals in `coupling`, in a basis of their own: `‖Kᵀy‖` is `‖Σ y_k (C q_k − θ_k q_k)‖`.
    """
    left = flat_products(problem)(state.vectors) - state.values[:, None] * state.vectors
    values, vectors = jnp.linalg.eigh(left @ left.T)
    return dataclasses.replace(state, coupling=vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None])


def coordinates(state: ArnoldiState, gradients: ExampleGradients) -> Float[Array, "n rank"]:
    """Compute `Q g` of every gradient by forward mode."""
    return gradients.along(jax.vmap(lambda row: trees.unravel(state.params, row))(state.vectors))


def galerkin_interval(
    state: ArnoldiState,
    gradients: ExampleGradients,
    damping: Float[Array, ""],
    rounding: float = 32.0,
    measured: Lengths | None = None,
    products: Float[Array, ""] | None = None,
) -> Interval:
    """Bound the forms from the shared subspace, without further products with C.

    With `y = (θ + λ)⁻¹ Q g` and `x = Qᵀ y`, the Galerkin value `gᵀx = Σ (Q g)² / (θ + λ)` is never above the form.
    Its error is `rᵀ(C + λI)⁻¹r ≤ ‖r‖²/λ` with `‖r‖ ≤ ‖g − QᵀQ g‖ + ‖Kᵀy‖`, where K is the coupling.

    Args:
        state: The state of a fitted `Arnoldi`.
        gradients: The gradients g.
        damping: λ.
        rounding: Number of unit roundoffs to allow for if nothing is measured: relative to ‖g‖ in g, and to (‖C‖ +
            λ)‖x‖ in `(C + λI)x`. Gradients in single precision, and products of nearly equal views, lose a thousand
            times as many.
        measured: The gradients' lengths, and a bound of their rounding error (`ihvp.rounding.gradient_lengths`).
        products: A bound of the rounding error of `(C + λI)x` with ‖x‖ = 1 (`ihvp.rounding.product_doubt`).

    Raises:
        CurvatureError: If C is not positive semi-definite by construction.
    """
    if state.curvature == "hessian":
        raise CurvatureError(
            "Bounds need a positive semi-definite C, and a Hessian may be indefinite; got curvature='hessian', use 'ggn', "
            "'fisher' or 'empirical_fisher'."
        )
    unit = rounding * jnp.finfo(state.vectors.dtype).eps
    if measured is None:
        length = jnp.sqrt(gradients.squared_norms(state.blocks))
        measured = Lengths(length, unit * length)
    rows, (length, off) = coordinates(state, gradients), measured
    y = rows / (state.values + damping)[None]
    value, reach = jnp.sum(rows * y, axis=1), jnp.linalg.norm(y, axis=1)
    moved = (unit * (jnp.max(state.values) + damping) if products is None else products) * reach
    error = reach * (2 * off + moved)
    # ‖g‖ and ‖Qg‖ each have this error, so the difference of their squares has no smaller one.
    within = jnp.linalg.norm(rows, axis=1)
    outside = jnp.sqrt(jnp.maximum(length**2 - within**2, 0.0) + 2 * off * (length + within))
    left = outside + jnp.linalg.norm(y @ state.coupling, axis=1) + off + moved
    return Interval(jnp.maximum(value - error, 0.0), value + error + left**2 / damping)
