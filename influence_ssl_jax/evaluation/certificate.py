"""Enclose exact scores between two bounds that hold.

The bounds come from Lanczos quadrature, or from the rows of C.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int, Key

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.configuration import COUNT, check_numbers
from influence_ssl_jax.curvature.contributions import MeasuredBatch, measure
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.data.examples import OpenSource
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.to_input import ToInput
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
    """A backend's solutions x for gradients g, and `A x` (`A = C + λI`).

    Attributes:
        rows: g.
        solutions: x.
        products: A x.
        doubt: A bound of the rounding error of g, in norm.
        product_doubt: A bound of the rounding error of A x, in norm.
    """

    rows: Float[Array, "n size"]
    solutions: Float[Array, "n size"]
    products: Float[Array, "n size"]
    doubt: Float[Array, " n"]
    product_doubt: Float[Array, " n"]


class Certificate(NamedTuple):
    """A backend's form of each gradient, and bounds of the exact form.

    Attributes:
        value: `gᵀx`, the backend's own form.
        residual: `‖g − (C + λI)x‖ / ‖g‖`; zero if g is.
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
    """Solve for every gradient and multiply the solution by the matrix.

    It takes one product with C for each gradient.

    Args:
        backend: Any backend, fitted to the problem; its `solve` need not be close to the inverse.
        state: The result of `fit`.
        problem: The problem whose curvature is inverted.
        rows: The gradients g, each ravelled (`trees.ravel_batch(gradients.full())`).
        damping: λ, one for the whole matrix.
        rounding: Unit roundoffs to allow for in products, relative to (‖C‖ + λ)‖x‖; the measured loss of products is
            added (`ihvp.rounding`).
        doubt: A bound of the rounding error of g, in norm (`ihvp.rounding.gradient_lengths`). None takes `rounding`
            unit roundoffs of ‖g‖, which is too little for the gradients of scores whose views are nearly equal.

    Raises:
        CurvatureError: C is a Hessian, which has no known lower bound.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "Bounds need a C that is positive semi-definite by construction: 'ggn', 'fisher' or 'empirical_fisher', got "
            "curvature='hessian', whose smallest eigenvalue can only be estimated."
        )
    products, like = flat_products(problem), problem.params
    solutions = jax.vmap(lambda v: trees.ravel(backend.solve(state, trees.unravel(like, v), damping)))(rows)
    moved = products(solutions) + damping * solutions
    known = rounding * jnp.finfo(rows.dtype).eps * jnp.linalg.norm(rows, axis=1) if doubt is None else doubt
    per_unit = product_doubt(products, rows[0], damping, rounding)
    return Solutions(rows, solutions, moved, known, per_unit * jnp.linalg.norm(solutions, axis=1))


def bound_by_residual(solutions: Solutions, damping: Float[Array, ""]) -> Certificate:
    """Bound the exact forms by solutions of any length and their residuals.

    For every t, `r = g − t A x` gives `gᵀA⁻¹g = 2t gᵀx − t² xᵀAx + rᵀA⁻¹r` with `0 ≤ rᵀA⁻¹r ≤ ‖r‖²/λ`, because no
    eigenvalue of A is below λ. The lower bound is largest at `t = gᵀx / xᵀAx`, the upper bound smallest at
    `t (‖Ax‖²/λ − xᵀAx) = gᵀAx/λ − gᵀx`: a common factor of a backend's solutions does not widen the bounds.

    Args:
        solutions: Solutions and products.
        damping: λ.
    """
    along, energy = _dot(solutions.rows, solutions.solutions), _dot(solutions.solutions, solutions.products)
    steep, curved = _dot(solutions.rows, solutions.products), _dot(solutions.products, solutions.products)
    below, (rest, above) = (
        _residual(solutions, _ratio(along, energy))[1],
        _residual(solutions, _ratio(steep / damping - along, curved / damping - energy)),
    )
    upper = above.values + above.error + (jnp.linalg.norm(rest, axis=1) + above.doubt) ** 2 / damping
    length = jnp.linalg.norm(solutions.rows, axis=1)
    missing = jnp.linalg.norm(solutions.rows - solutions.products, axis=1)
    return Certificate(
        along,
        missing / jnp.where(length > 0, length, 1.0),
        Interval(jnp.maximum(below.values - below.error, 0.0), upper),
    )


def refine(
    solutions: Solutions,
    problem: Problem,
    damping: Float[Array, ""],
    key: Key[Array, ""],
    width: float | Float[Array, ""] = 0.05,
    steps: int = 60,
    rounding: float = 32.0,
) -> Bounds:
    """Narrow the bounds by Gauss and Gauss–Radau quadrature of `rᵀA⁻¹r`.

    r is the residual of the solutions. The bounds hold for any backend. Products are saved by the Galerkin solution in
    a shared Krylov subspace, `Arnoldi(complement="drop")`: its residual has almost no part along the large eigenvalues,
    so Lanczos does not see them, as if the matrix were deflated. The residuals of other backends have parts everywhere,
    and save nothing.

    Args:
        solutions: Solutions and products.
        problem: The problem whose curvature is inverted.
        damping: λ.
        key: The key for the measurement of rounding.
        width: The relative width to reach.
        steps: Largest number of products with C.
        rounding: Unit roundoffs to allow for in products.
    """
    scale = _ratio(_dot(solutions.rows, solutions.solutions), _dot(solutions.solutions, solutions.products))
    rest, known = _residual(solutions, scale)
    return quadratic_form_bounds(flat_products(problem), rest, damping, key, width, steps, rounding, known)


def _residual(solutions: Solutions, scale: Float[Array, " n"]) -> tuple[Float[Array, "n size"], Offset]:
    """Return `r = g − t A x`, and `2t gᵀx − t² xᵀAx` with bounds of the rounding error of both."""
    values = 2 * scale * _dot(solutions.rows, solutions.solutions) - scale**2 * _dot(
        solutions.solutions, solutions.products
    )
    length = jnp.abs(scale) * jnp.linalg.norm(solutions.solutions, axis=1)
    product_doubt = jnp.abs(scale) * solutions.product_doubt
    error = length * (2 * solutions.doubt + product_doubt)
    return solutions.rows - scale[:, None] * solutions.products, Offset(values, error, solutions.doubt + product_doubt)


def _ratio(above: Float[Array, " n"], below: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return a factor for a solution.

    It is 1 if the denominator is not positive.
    """
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 1.0)


def _dot(left: Float[Array, "n size"], right: Float[Array, "n size"]) -> Float[Array, " n"]:
    """Return the inner products of rows."""
    return jnp.sum(left * right, axis=1)


@dataclasses.dataclass(frozen=True)
class Audit:
    """How examples are certified.

    Attributes:
        examples: Size of the random sample; all examples if there are fewer. A larger sample later contains a smaller
            one.
        width: Iterate until (upper − lower) is at most this share of their mean.
        steps: Stop after this many products with C, however wide the interval is. Memory: steps + 1 vectors of the size
            of the parameters for each example of a batch.
        batch_size: Examples at a time.
        by: `quadrature` takes products with C, image by image, at any size. `rows` keeps the R gradients whose outer
            products sum to C, R · P numbers, and solves in their span (Woodbury). It costs about ten gradients for each
            row once, and for each image and draw. It needs a `fisher` or `empirical_fisher` of up to a few thousand
            gradients, and bounds scores in float32 at less damping.
        subspace: Rank of a Krylov subspace that all examples share, 0 for none. It costs about twice as many products
            with C once, and saves steps for each example, because the large eigenvalues are known.
        rounding: Unit roundoffs by which C, and the gradient of each view, may be wrong in addition to what is measured
            (`ihvp.rounding`).
        probes: Random vectors for the mean eigenvalue, from which relative damping is resolved.
        seed: The seed of the sample.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> audit = isj.Audit(examples=500, width=0.1)  # run.audit(audit), of a run of isj.score
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
                raise ValueError(f"An audit needs at least one of {name}, got {name}={getattr(self, name)}.")
        check_numbers(self, examples=COUNT, steps=COUNT, batch_size=COUNT, probes=COUNT, rounding=(0, math.inf))
        if not self.width >= 0:
            raise ValueError(f"width is a share of the score, 0 or more, got {self.width}.")

    @property
    def program(self) -> "Audit":
        """The settings that a compiled program depends on.

        The size and the seed of the sample are replaced.
        """
        return dataclasses.replace(self, examples=1, seed=0)


class RowsOfCurvature(NamedTuple):
    """The rows of A, with `C = AᵀA`.

    Attributes:
        state: A, and the decomposition that solves in its span.
        doubt: A bound of ‖δA‖ in the Frobenius norm, with δA the rounding error of the rows (`ihvp.rounding`).
    """

    state: GramState
    doubt: Float[Array, ""]

    def damping(self, damping: Damping) -> Float[Array, ""]:
        """Return λ in numbers, from the eigenvalues of C.

        Raises:
            CurvatureError: The curvature is zero or not finite.
        """
        return scalar(_WOODBURY.resolve(self.state, damping))


Shared: TypeAlias = ArnoldiState | RowsOfCurvature | None
"""What the certificates of all batches share: dominant Ritz pairs of C, its rows, or nothing."""

_WOODBURY = Gram(samples=None, unexplained="materialise")


class ScoreBounds(NamedTuple):
    """Bounds of a batch's scores; NaN without a score.

    Attributes:
        lower: A number that is never above the exact score; −∞ for a `u_statistic` if rounding leaves no bound.
        upper: A number that is never below it; infinite if rounding leaves no bound.
        degenerate: Whether the measurement of each example is undefined.
        steps: Products with C for each example, over all its draws.
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
    """Bound the scores of one batch.

    The bounds come from the rows of C, or from Gauss and Gauss–Radau quadrature (`linalg.quadrature`). The draws and
    the estimand are those of the score. Bounded is `gᵀ(C + λI)⁻¹g` for the gradient of every draw, for that of the
    averaged loss, or (`u_statistic`) for both.

    Args:
        problem: The problem whose curvature is inverted; it is positive semi-definite by construction.
        measurement: The objective that is scored.
        batch: The examples.
        damping: λ.
        key: The key for the measurement of rounding.
        scoring: Draws, their noise and the estimand.
        settings: How narrow the bounds are.
        shared: What all batches share: the rows of C, a Krylov subspace, or nothing (`prepare_shared`).

    Raises:
        CurvatureError: The curvature is a Hessian, whose smallest eigenvalue is unknown.
    """
    if problem.curvature == "hessian":
        raise CurvatureError(
            "A certificate needs a lower bound of C's eigenvalues, which is not known for a Hessian: audit 'ggn', "
            "'fisher' or 'empirical_fisher', got curvature='hessian'."
        )
    measurements = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
    if isinstance(shared, RowsOfCurvature):
        return _certify_by_rows(shared, measurement, measurements, damping, scoring, settings)
    rows = trees.ravel_batch(measurements.gradients.full()).reshape(scoring.draws, batch.index.shape[0], -1)
    doubt = gradient_lengths(measurement, measurements.gradients, settings.rounding).doubt.reshape(scoring.draws, -1, 1)
    starts, doubts = (_starts(side, scoring.estimand) for side in (rows, doubt))

    def one(entry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bounds = _bounds(problem, *entry, damping, settings, shared)
        return bounds.lower, bounds.upper, bounds.steps

    lower, upper, steps = jax.lax.map(one, (starts, doubts[..., 0], jax.random.split(key, starts.shape[0])))
    low, high = _combine(lower, upper, scoring.estimand)
    unusable = measurements.degenerate | jnp.isnan(low) | jnp.isnan(high)
    return ScoreBounds(
        jnp.where(unusable, jnp.nan, low), jnp.where(unusable, jnp.nan, high), measurements.degenerate, jnp.sum(steps)
    )


def prepare_shared(problem: Problem, settings: Audit) -> Shared:
    """Compute what the certificates of all batches share.

    It is the rows of C, its dominant Ritz pairs, or nothing.

    Args:
        problem: The problem whose curvature is inverted.
        settings: `by` and `subspace` decide.

    Raises:
        CurvatureError: The curvature is a Hessian, which is not a sum of outer products.
        InfluenceError: It is a sum of too many outer products for `by="rows"`.
    """
    key = randomness.root(settings.seed, Stream.SHARED_SUBSPACE)
    if settings.by == "rows":
        return jax.jit(_rows, static_argnums=1)(problem, settings.program, key)
    if not settings.subspace:
        return None
    return fit(_subspace_backend(settings), problem, key)


def _rows(problem: Problem, settings: Audit, key: Key[Array, ""]) -> RowsOfCurvature:
    """Compute A with a bound of its rounding.

    For a `ggn` the rows are those of every output of every example, so that C is the problem's own.
    """
    state = _WOODBURY.fit(problem, key)
    return RowsOfCurvature(state, row_doubt(problem, _WOODBURY.samples, state.blocks, settings.rounding))


def _certify_by_rows(
    rows: RowsOfCurvature,
    measurement: Objective,
    measurements: MeasuredBatch,
    damping: Float[Array, ""],
    scoring: Scoring,
    settings: Audit,
) -> ScoreBounds:
    """Bound the scores by Woodbury's identity.

    Let Â be the rows as computed, `E = A − Â`, `x̂` the solution with Â. With e ≥ ‖E‖, `‖x̂‖ ≤ s/√λ` and `‖Âx̂‖ ≤ s`,
    where s² is the form, the form with A differs by at most `s² (2t + 5t²)`, `t = e/√λ`: it is
    `x̂ᵀΔx̂ − x̂ᵀΔ(C + λI)⁻¹Δx̂` with `Δ = ÂᵀE + EᵀA`, and ‖(C + λI)^{-½}Aᵀ‖ ≤ 1. A gradient with the error δ adds
    `2 s ‖δ‖/√λ + ‖δ‖²/λ`.
    """
    assessed = _WOODBURY.assess(rows.state, measurements.gradients, damping)
    values, rounding = assessed.form.values, assessed.rounding
    assert rounding is not None
    root = jnp.sqrt(damping)
    moved = (
        gradient_lengths(measurement, measurements.gradients, settings.rounding).doubt.reshape(scoring.draws, -1).T
        / root
    )
    relative = rows.doubt / root
    relative = 2 * relative + 5 * relative**2
    highest = jnp.einsum("bkk->bk", values + rounding)
    size = jnp.sqrt(jnp.maximum(highest, 0.0))
    grown = size * jnp.sqrt(1 + relative)

    def pairs(left: Float[Array, "batch draws"], right: Float[Array, "batch draws"]) -> Array:
        return left[:, :, None] * right[:, None, :]

    error = rounding + relative * pairs(size, size) + pairs(grown, moved) + pairs(moved, grown) + pairs(moved, moved)
    low, high = bound_estimate(values, error, scoring.estimand)
    undefined = measurements.degenerate | jnp.isnan(low) | jnp.isnan(high)
    return ScoreBounds(
        jnp.where(undefined, jnp.nan, low), jnp.where(undefined, jnp.nan, high), measurements.degenerate, jnp.asarray(0)
    )


def _subspace_backend(settings: Audit) -> Arnoldi:
    """Return the backend whose state is the shared subspace."""
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
    """Compute quadrature from the gradients, or their remainders outside the shared subspace."""
    width, steps, rounding = settings.width, settings.steps, settings.rounding
    if shared is None:
        offset = Offset(jnp.zeros_like(doubt), jnp.zeros_like(doubt), doubt)
        return quadratic_form_bounds(flat_products(problem), starts, damping, key, width, steps, rounding, offset)
    solutions = solve_and_multiply(_subspace_backend(settings), shared, problem, starts, damping, rounding, doubt)
    narrow, sure = (
        refine(solutions, problem, damping, key, width, steps, rounding),
        bound_by_residual(solutions, damping).interval,
    )
    # What the subspace leaves may be rounding alone, and then quadrature gives no useful bound; both pairs hold.
    return narrow._replace(lower=jnp.maximum(narrow.lower, sure.lower), upper=jnp.minimum(narrow.upper, sure.upper))


def _starts(rows: Float[Array, "draws batch size"], estimand: Estimand) -> Float[Array, "starts batch size"]:
    """Return the gradients whose forms the estimand needs.

    These are the gradients of every draw, and the mean over draws.
    """
    mean = jnp.mean(rows, axis=0, keepdims=True)
    return {"mean_of_scores": rows, "score_of_mean": mean, "u_statistic": jnp.concatenate([rows, mean])}[estimand]


def _combine(
    lower: Float[Array, "starts batch"], upper: Float[Array, "starts batch"], estimand: Estimand
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Return bounds of the estimand from bounds of the forms.

    With K draws, `u = (K · form of the mean − mean of forms) / (K − 1)`.
    """
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
    """Yield columns `index, galerkin_lo, galerkin_hi` for each batch: intervals from a shared Krylov subspace.

    An interval is the mean over draws of those of `ihvp.arnoldi`. It holds the exact score under the same assumptions
    about rounding as a certificate (`ihvp.rounding`): what the subspace leaves of C, what products lose, and the errors
    of gradients are measured, in the type of the problem. It is wide if the subspace leaves much of a gradient. An
    example that cannot be read has no row, and an undefined score gives NaN.

    Args:
        problem: The problem whose curvature is inverted.
        state: The fitted subspace.
        source: The examples.
        transform: The transform of an image to the input.
        damping: λ.
        scoring: Draws and their noise.
        measurement: The objective that is scored.

    Raises:
        InfluenceError: The estimand is not a mean of scores.
        CurvatureError: The curvature is a Hessian.
    """
    if scoring.estimand != "mean_of_scores":
        raise InfluenceError(f"Galerkin intervals need the estimand mean_of_scores, got estimand={scoring.estimand!r}.")

    state = jax.jit(measure_residuals)(state, problem)
    moved = jax.jit(lambda problem, row: product_doubt(flat_products(problem), row, damping))(problem, state.vectors[0])

    @jax.jit
    def run(problem: Problem, state: ArnoldiState, batch: Batch) -> tuple[Array, Array]:
        measurements = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
        lengths = gradient_lengths(measurement, measurements.gradients)
        interval = galerkin_interval(state, measurements.gradients, damping, measured=lengths, products=moved)
        lower, upper = (jnp.mean(side.reshape(scoring.draws, -1), axis=0) for side in interval)
        return jnp.where(measurements.degenerate, jnp.nan, lower), jnp.where(measurements.degenerate, jnp.nan, upper)

    shape = problem.batches.image.shape[2:]
    arguments = (measurement, problem.params, problem.frozen, Arnoldi(), state, shape, scoring.draws)
    size = scoring.batch_size or estimate_memory(*arguments).batch_size(*available_memory())
    for loaded in batches(source, transform, size, scoring.key):
        lower, upper = run(problem, state, loaded.batch)
        yield pa.table(
            {
                "index": pa.array(np.asarray(loaded.batch.index)[loaded.valid].astype(np.int64)),
                "galerkin_lo": np.asarray(lower, np.float64)[loaded.valid],
                "galerkin_hi": np.asarray(upper, np.float64)[loaded.valid],
            }
        )
