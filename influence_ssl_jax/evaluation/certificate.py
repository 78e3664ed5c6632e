"""Enclose exact scores between two bounds that hold, by Lanczos quadrature."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.contributions import MeasuredBatch, measure
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.source import OpenSource
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.ihvp.arnoldi import Arnoldi, ArnoldiState, galerkin_interval, measure_residuals
from influence_ssl_jax.ihvp.backend import Backend, Damping, Interval, State, scalar
from influence_ssl_jax.ihvp.gram import Gram, GramState
from influence_ssl_jax.ihvp.rounding import gradient_lengths, product_doubt, row_doubt
from influence_ssl_jax.linalg.quadrature import Bounds, Offset, quadratic_form_bounds
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.estimands import Estimand, bound_estimate
from influence_ssl_jax.scoring.fitting import fit
from influence_ssl_jax.scoring.memory import available_memory, estimate_memory
from influence_ssl_jax.scoring.scores import Scoring, assign_keys
from influence_ssl_jax.types import Batch


class Solutions(NamedTuple):
    """What a backend makes of gradients g, and the products that judge it: `x`, and `A x` with `A = C + λI`.

    Attributes:
        rows: g.
        solutions: x.
        products: A x.
        doubt: Bound of the rounding error of g, in norm.
        product_doubt: Bound of the rounding error of A x, in norm.
    """

    rows: Float[Array, "n size"]
    solutions: Float[Array, "n size"]
    products: Float[Array, "n size"]
    doubt: Float[Array, " n"]
    product_doubt: Float[Array, " n"]


class Certificate(NamedTuple):
    """What a backend says of each gradient, and how wrong it can be.

    Attributes:
        value: `gᵀx`, the backend's own form.
        residual: `‖g − (C + λI)x‖ / ‖g‖`; zero where g is.
        interval: Bounds of the exact form.
    """

    value: Float[Array, " n"]
    residual: Float[Array, " n"]
    interval: Interval


def solve_and_multiply(
    backend: Backend[State],
    state: State,
    problem: Problem,
    rows: Float[Array, "n size"],
    damping: Float[Array, ""],
    rounding: float = 32.0,
    doubt: Float[Array, " n"] | None = None,
) -> Solutions:
    """Solve for every gradient and multiply the solution by the matrix itself: one product with C a gradient.

    Args:
        backend: Any, fitted to the problem; its `solve` need not be near the inverse.
        state: What `fit` returned.
        problem: Whose curvature.
        rows: The gradients g, each ravelled (`trees.ravel_batch(gradients.full())`).
        damping: λ, one for the whole matrix.
        rounding: Unit roundoffs to allow for, relative to (‖C‖ + λ)‖x‖ in products; what products are seen to lose comes
            on top (`ihvp.rounding`).
        doubt: Bound of the rounding error of g, in norm (`ihvp.rounding.gradient_lengths`); `rounding` unit roundoffs of
            ‖g‖ where None, which gradients of a score exceed where views are nearly equal.

    Raises:
        CurvatureError: C is a Hessian, which has no known lower bound.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "Bounds take a C that is positive semi-definite by construction: 'ggn', 'fisher' or 'empirical_fisher', got "
            "curvature='hessian', whose smallest eigenvalue is only ever estimated."
        )
    products, like = flat_products(problem), problem.params
    solutions = jax.vmap(lambda v: trees.ravel(backend.solve(state, trees.unravel(like, v), damping)))(rows)
    moved = products(solutions) + damping * solutions
    known = rounding * jnp.finfo(rows.dtype).eps * jnp.linalg.norm(rows, axis=1) if doubt is None else doubt
    per_unit = product_doubt(products, rows[0], damping, rounding)
    return Solutions(rows, solutions, moved, known, per_unit * jnp.linalg.norm(solutions, axis=1))


def bound_by_residual(found: Solutions, damping: Float[Array, ""]) -> Certificate:
    """Bounds from no more than a solution and its residual, whatever the solution's length.

    For every t, `r = g − t A x` gives `gᵀA⁻¹g = 2t gᵀx − t² xᵀAx + rᵀA⁻¹r` with `0 ≤ rᵀA⁻¹r ≤ ‖r‖²/λ`, as no eigenvalue
    of A is below λ. The lower bound is largest at `t = gᵀx / xᵀAx`, the upper one smallest where
    `t (‖Ax‖²/λ − xᵀAx) = gᵀAx/λ − gᵀx`: a backend's bias by a common factor costs nothing.
    """
    along, energy = _dot(found.rows, found.solutions), _dot(found.solutions, found.products)
    steep, curved = _dot(found.rows, found.products), _dot(found.products, found.products)
    below, (rest, above) = (
        _residual(found, _ratio(along, energy))[1],
        _residual(found, _ratio(steep / damping - along, curved / damping - energy)),
    )
    upper = above.values + above.error + (jnp.linalg.norm(rest, axis=1) + above.doubt) ** 2 / damping
    length = jnp.linalg.norm(found.rows, axis=1)
    missing = jnp.linalg.norm(found.rows - found.products, axis=1)
    return Certificate(
        along,
        missing / jnp.where(length > 0, length, 1.0),
        Interval(jnp.maximum(below.values - below.error, 0.0), upper),
    )


def refine(
    found: Solutions,
    problem: Problem,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    width: float | Float[Array, ""] = 0.05,
    steps: int = 60,
    rounding: float = 32.0,
) -> Bounds:
    """Bounds as narrow as asked: Gauss and Gauss–Radau quadrature of what the solution leaves, `rᵀA⁻¹r`.

    The bounds hold whatever the backend. Products are saved by the Galerkin solution in a shared Krylov subspace,
    `Arnoldi(complement="drop")`: its residual has next to nothing along the large eigenvalues, so that Lanczos does not
    see them, as if the matrix were deflated. Other backends' residuals have parts everywhere, and save nothing.
    """
    scale = _ratio(_dot(found.rows, found.solutions), _dot(found.solutions, found.products))
    rest, known = _residual(found, scale)
    return quadratic_form_bounds(flat_products(problem), rest, damping, key, width, steps, rounding, known)


def _residual(found: Solutions, scale: Float[Array, " n"]) -> tuple[Float[Array, "n size"], Offset]:
    """`r = g − t A x`, and `2t gᵀx − t² xᵀAx` with what rounding can have done to both."""
    values = 2 * scale * _dot(found.rows, found.solutions) - scale**2 * _dot(found.solutions, found.products)
    length = jnp.abs(scale) * jnp.linalg.norm(found.solutions, axis=1)
    product_doubt = jnp.abs(scale) * found.product_doubt
    error = length * (2 * found.doubt + product_doubt)
    return found.rows - scale[:, None] * found.products, Offset(values, error, found.doubt + product_doubt)


def _ratio(above: Float[Array, " n"], below: Float[Array, " n"]) -> Float[Array, " n"]:
    """A factor for a solution, 1 where there is none to choose."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 1.0)


def _dot(left: Float[Array, "n size"], right: Float[Array, "n size"]) -> Float[Array, " n"]:
    return jnp.sum(left * right, axis=1)


@dataclasses.dataclass(frozen=True)
class Audit:
    """How examples are certified.

    Attributes:
        examples: Size of the random sample; all where there are fewer. A larger one later contains a smaller one.
        width: Iterate until (upper − lower) is at most so much of their mean.
        steps: Stop after so many products with C, however wide the interval then is. Memory: steps + 1 vectors of the
            parameters' size for each example of a batch.
        batch_size: Examples at a time.
        by: `quadrature` takes products with C, image by image, at any size. `rows` keeps the R gradients whose outer
            products sum to C, R · P numbers, and solves in their span (Woodbury): some ten gradients for each of them once,
            and for each image and draw. It takes a `fisher` or `empirical_fisher` of up to some thousand gradients, and in
            float32 bounds scores at less damping.
        subspace: Rank of a Krylov subspace that is shared by all examples: about twice as many products with C once,
            then fewer steps for each example, because the large eigenvalues are known; 0 for none.
        rounding: Unit roundoffs that C, and the gradient of each view, may be off by beside what is measured
            (`ihvp.rounding`).
        probes: Random vectors for the mean eigenvalue, from which relative damping is resolved.
        seed: Chooses the sample.
    """

    examples: int = 200
    width: float = 0.05
    steps: int = 100
    batch_size: int = 4
    by: Literal["quadrature", "rows"] = "quadrature"
    subspace: int = 0
    rounding: float = 32.0
    probes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that certify nothing."""
        if self.by == "rows" and self.subspace:
            raise ValueError(f"by='rows' needs no Krylov subspace: subspace must be 0, got {self.subspace}.")
        if self.subspace < 0:
            raise ValueError(f"subspace is a rank, 0 for none, got {self.subspace}.")
        for name in ("examples", "steps", "batch_size", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"An audit takes at least one of {name}, got {name}={getattr(self, name)}.")
        if not self.width >= 0:
            raise ValueError(f"width is a share of the score, 0 or more, got {self.width}.")

    @property
    def program(self) -> "Audit":
        """The settings that a compiled program depends on; the size of the sample and its seed are others'."""
        return dataclasses.replace(self, examples=1, seed=0)


class RowsOfCurvature(NamedTuple):
    """`C = AᵀA` by its rows.

    Attributes:
        state: A, and what solves in its span.
        doubt: A bound of ‖δA‖ in the Frobenius norm, δA the rounding error of the rows (`ihvp.rounding`).
    """

    state: GramState
    doubt: Float[Array, ""]

    def damping(self, damping: Damping) -> Float[Array, ""]:
        """λ in numbers, from the eigenvalues of C.

        Raises:
            CurvatureError: The curvature is zero or not finite.
        """
        return scalar(_WOODBURY.resolve(self.state, damping))


Shared: TypeAlias = ArnoldiState | RowsOfCurvature | None
"""What the certificates of all batches share: dominant Ritz pairs of C, its rows, or nothing."""

_WOODBURY = Gram(samples=None, unexplained="materialise")


class ScoreBounds(NamedTuple):
    """Bounds of a batch's scores; NaN where there is no score.

    Attributes:
        lower: Never above the exact score; −∞ for a `u_statistic` where rounding leaves no bound.
        upper: Never below it; infinite where rounding leaves no bound.
        degenerate: Examples for which the measurement is undefined.
        steps: Products with C that each example took, over all its draws.
    """

    lower: Float[Array, " batch"]
    upper: Float[Array, " batch"]
    degenerate: Bool[Array, " batch"]
    steps: Int[Array, ""]


def certify(
    problem: Problem,
    measurement: Objective,
    batch: Batch,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    scoring: Scoring,
    settings: Audit,
    shared: Shared = None,
) -> ScoreBounds:
    """Bounds of the scores of one batch: from the rows of C, or by Gauss and Gauss–Radau quadrature (`linalg.quadrature`).

    The draws, and what they are averaged into, are those of the score: bounds of `gᵀ(C + λI)⁻¹g` for every draw's
    gradient, for that of the averaged loss, or (`u_statistic`) for both.

    Args:
        problem: Whose curvature; positive semi-definite by construction.
        measurement: What is scored.
        batch: The examples.
        damping: λ.
        key: For the measurement of rounding.
        scoring: Draws, their noise and the estimand.
        settings: How narrow.
        shared: What all batches share: the rows of C, a Krylov subspace, or nothing (`shared_by_all`).

    Raises:
        CurvatureError: The curvature is a Hessian, of which no eigenvalue is known to be the smallest.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "A certificate needs a lower bound of C's eigenvalues, and a Hessian's is not known: audit 'ggn', 'fisher' "
            "or 'empirical_fisher', got curvature='hessian'."
        )
    found = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
    if isinstance(shared, RowsOfCurvature):
        return _certify_by_rows(shared, measurement, found, damping, scoring, settings)
    rows = trees.ravel_batch(found.gradients.full()).reshape(scoring.draws, batch.index.shape[0], -1)
    doubt = gradient_lengths(measurement, found.gradients, settings.rounding).doubt.reshape(scoring.draws, -1, 1)
    starts, doubts = (_starts(side, scoring.estimand) for side in (rows, doubt))

    def one(entry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        found = _bounds(problem, *entry, damping, settings, shared)
        return found.lower, found.upper, found.steps

    lower, upper, steps = jax.lax.map(one, (starts, doubts[..., 0], jax.random.split(key, starts.shape[0])))
    low, high = _combine(lower, upper, scoring.estimand)
    unusable = found.degenerate | jnp.isnan(low) | jnp.isnan(high)
    return ScoreBounds(
        jnp.where(unusable, jnp.nan, low), jnp.where(unusable, jnp.nan, high), found.degenerate, jnp.sum(steps)
    )


def prepare_shared(problem: Problem, settings: Audit) -> Shared:
    """Return what the certificates of all batches share: the rows of C, its dominant Ritz pairs, or nothing.

    Raises:
        CurvatureError: The curvature is a Hessian, which is no sum of outer products.
        InfluenceError: It is a sum of too many for `by="rows"`.
    """
    key = randomness.root(settings.seed, Stream.SHARED_SUBSPACE)
    if settings.by == "rows":
        return jax.jit(_rows, static_argnums=1)(problem, settings.program, key)
    if not settings.subspace:
        return None
    return fit(_subspace_backend(settings), problem, key)


def _rows(problem: Problem, settings: Audit, key: Key[Array, ""]) -> RowsOfCurvature:
    """A with a bound of its rounding; of a `ggn` every output of every example, so that C is the problem's own."""
    state = _WOODBURY.fit(problem, key)
    return RowsOfCurvature(state, row_doubt(problem, _WOODBURY.samples, state.blocks, settings.rounding))


def _certify_by_rows(
    rows: RowsOfCurvature,
    measurement: Objective,
    found: MeasuredBatch,
    damping: Float[Array, ""],
    scoring: Scoring,
    settings: Audit,
) -> ScoreBounds:
    """Bounds from Woodbury's identity.

    Let Â be the rows as computed, `E = A − Â`, `x̂` the solution with Â. With e ≥ ‖E‖, `‖x̂‖ ≤ s/√λ` and `‖Âx̂‖ ≤ s`, where
    s² is the form, the form with A differs by at most `s² (2t + 5t²)`, `t = e/√λ`: it is
    `x̂ᵀΔx̂ − x̂ᵀΔ(C + λI)⁻¹Δx̂` with `Δ = ÂᵀE + EᵀA`, and ‖(C + λI)^{-½}Aᵀ‖ ≤ 1. A gradient that is off by δ adds
    `2 s ‖δ‖/√λ + ‖δ‖²/λ`.
    """
    assessed = _WOODBURY.assess(rows.state, found.gradients, damping)
    values, rounding = assessed.form.values, assessed.rounding
    assert rounding is not None
    root = jnp.sqrt(damping)
    moved = gradient_lengths(measurement, found.gradients, settings.rounding).doubt.reshape(scoring.draws, -1).T / root
    relative = rows.doubt / root
    relative = 2 * relative + 5 * relative**2
    highest = jnp.einsum("bkk->bk", values + rounding)
    size = jnp.sqrt(jnp.maximum(highest, 0.0))
    grown = size * jnp.sqrt(1 + relative)

    def pairs(left: Float[Array, "batch draws"], right: Float[Array, "batch draws"]) -> Array:
        return left[:, :, None] * right[:, None, :]

    error = rounding + relative * pairs(size, size) + pairs(grown, moved) + pairs(moved, grown) + pairs(moved, moved)
    low, high = bound_estimate(values, error, scoring.estimand)
    undefined = found.degenerate | jnp.isnan(low) | jnp.isnan(high)
    return ScoreBounds(
        jnp.where(undefined, jnp.nan, low), jnp.where(undefined, jnp.nan, high), found.degenerate, jnp.asarray(0)
    )


def _subspace_backend(settings: Audit) -> Arnoldi:
    return Arnoldi(settings.subspace, complement="drop", probes=1, unexplained="materialise")


def _bounds(
    problem: Problem,
    starts: Float[Array, "n size"],
    doubt: Float[Array, " n"],
    key: Key[Array, ""],
    damping: Float[Array, ""],
    settings: Audit,
    shared: ArnoldiState | None,
) -> Bounds:
    """Quadrature started at the gradients, or at what the shared subspace leaves of them."""
    width, steps, rounding = settings.width, settings.steps, settings.rounding
    if shared is None:
        offset = Offset(jnp.zeros_like(doubt), jnp.zeros_like(doubt), doubt)
        return quadratic_form_bounds(flat_products(problem), starts, damping, key, width, steps, rounding, offset)
    found = solve_and_multiply(_subspace_backend(settings), shared, problem, starts, damping, rounding, doubt)
    narrow, sure = (
        refine(found, problem, damping, key, width, steps, rounding),
        bound_by_residual(found, damping).interval,
    )
    # What the subspace leaves may be rounding alone, of which quadrature says nothing; both pairs of bounds hold.
    return narrow._replace(lower=jnp.maximum(narrow.lower, sure.lower), upper=jnp.minimum(narrow.upper, sure.upper))


def _starts(rows: Float[Array, "draws batch size"], estimand: Estimand) -> Float[Array, "starts batch size"]:
    """The gradients whose forms make up the estimand: of every draw, and the mean over draws."""
    mean = jnp.mean(rows, axis=0, keepdims=True)
    return {"mean_of_scores": rows, "score_of_mean": mean, "u_statistic": jnp.concatenate([rows, mean])}[estimand]


def _combine(
    lower: Float[Array, "starts batch"], upper: Float[Array, "starts batch"], estimand: Estimand
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Bounds of the estimand. Of K draws, `u = (K · form of the mean − mean of forms) / (K − 1)`."""
    if estimand != "u_statistic":
        return jnp.mean(lower, axis=0), jnp.mean(upper, axis=0)
    draws = lower.shape[0] - 1
    own = jnp.mean(lower[:-1], axis=0), jnp.mean(upper[:-1], axis=0)
    return (draws * lower[-1] - own[1]) / (draws - 1), (draws * upper[-1] - own[0]) / (draws - 1)


def bound_by_galerkin(
    problem: Problem,
    state: ArnoldiState,
    source: OpenSource,
    transform: ToInput,
    damping: Float[Array, ""],
    scoring: Scoring,
    measurement: Objective,
) -> Iterator[pa.Table]:
    """Columns `index, galerkin_lo, galerkin_hi`, a batch at a time: the mean over draws of `ihvp.arnoldi`'s interval.

    They hold the exact score under the assumptions about rounding that `ihvp.rounding` states, as a certificate does: what
    the subspace leaves of C, what products lose and how far gradients are off is measured, in the type of the problem.
    Wide where the subspace leaves much of a gradient; what cannot be read has no row, and an undefined score NaN.

    Raises:
        InfluenceError: The estimand is not a mean of scores.
        CurvatureError: The curvature is a Hessian.
    """
    if scoring.estimand != "mean_of_scores":
        raise InfluenceError(f"Galerkin intervals are of a mean_of_scores, got estimand={scoring.estimand!r}.")

    state = jax.jit(measure_residuals)(state, problem)
    moved = jax.jit(lambda problem, row: product_doubt(flat_products(problem), row, damping))(problem, state.vectors[0])

    @jax.jit
    def run(problem: Problem, state: ArnoldiState, batch: Batch) -> tuple[Array, Array]:
        found = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
        lengths = gradient_lengths(measurement, found.gradients)
        interval = galerkin_interval(state, found.gradients, damping, measured=lengths, products=moved)
        lower, upper = (jnp.mean(side.reshape(scoring.draws, -1), axis=0) for side in interval)
        return jnp.where(found.degenerate, jnp.nan, lower), jnp.where(found.degenerate, jnp.nan, upper)

    shape = problem.batches.image.shape[2:]
    held = (measurement, problem.params, problem.frozen, Arnoldi(), state, shape, scoring.draws)
    size = scoring.batch_size or estimate_memory(*held).batch_size(*available_memory())
    for loaded in batches(source, transform, size, scoring.key):
        lower, upper = run(problem, state, loaded.batch)
        yield pa.table(
            {
                "index": pa.array(np.asarray(loaded.batch.index)[loaded.valid].astype(np.int64)),
                "galerkin_lo": np.asarray(lower, np.float64)[loaded.valid],
                "galerkin_hi": np.asarray(upper, np.float64)[loaded.valid],
            }
        )
