"""Compute exact scores from dense matrices, function space or certificates."""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature.contributions import measure, row_count
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import CurvatureError, InfluenceError
from influence_ssl_jax.evaluation.certificate import Audit, certify, prepare_shared
from influence_ssl_jax.evaluation.sample import absolute_damping
from influence_ssl_jax.ihvp.backend import Damping, scalar
from influence_ssl_jax.ihvp.exact import Exact, ExactState
from influence_ssl_jax.ihvp.gram import batch_gradients
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.estimands import estimate
from influence_ssl_jax.scoring.fitting import fit
from influence_ssl_jax.scoring.scores import Scoring, assign_keys
from influence_ssl_jax.types import Batch

Rows = Float[np.ndarray, "n size"]
_CHUNK = 1 << 15


class FunctionSpace(NamedTuple):
    """The eigenvectors of `AAᵀ`, with `C = AᵀA`, and gradients g in them.

    Attributes:
        eigenvalues: μ of `AAᵀ`, which are the eigenvalues of C that are not zero.
        coordinates: `Vᵀ A g` of every gradient, with V the eigenvectors of `AAᵀ`.
        squared_norms: ‖g‖².
        size: Number of parameters.
    """

    eigenvalues: Float[np.ndarray, " rank"]
    coordinates: Float[np.ndarray, "n rank"]
    squared_norms: Float[np.ndarray, " n"]
    size: int

    @property
    def mean_eigenvalue(self) -> float:
        """The mean eigenvalue, tr(C)/P."""
        return float(self.eigenvalues.sum()) / self.size

    def forms(self, damping: float) -> Float[np.ndarray, " n"]:
        """Return `gᵀ(C + λI)⁻¹g = (‖g‖² − (Ag)ᵀ(AAᵀ + λI)⁻¹Ag) / λ` of every gradient (Woodbury).

        Args:
            damping: λ.
        """
        inside = np.sum(self.coordinates**2 / (self.eigenvalues + damping), axis=1)
        return (self.squared_norms - inside) / damping


def count_outer_products(problem: Problem) -> int:
    """Return the number of outer products whose sum is C.

    Raises:
        CurvatureError: C is not a sum of outer products of gradients.
    """
    if problem.curvature in ("empirical_fisher", "fisher"):
        return row_count(problem, problem.samples)
    raise CurvatureError(
        "Exact scores in function space need a curvature that is a sum of outer products of gradients, 'fisher' or "
        f"'empirical_fisher', got curvature={problem.curvature!r}."
    )


def function_space(problem: Problem, gradients: Rows, max_rank: int = 4096) -> FunctionSpace:
    """Decompose C in function space, with the gradients whose forms are wanted.

    The gradients that C is made of are computed one batch at a time and kept, in the type of the parameters: memory is
    (rank + n) vectors of their size. Gram matrices are summed in float64, so the forms are exact up to the rounding of
    those gradients.

    Args:
        problem: C, a sampled or empirical Fisher.
        gradients: The vectors g, as rows.
        max_rank: Largest number of outer products.

    Raises:
        CurvatureError: C is of another kind.
        InfluenceError: C is a sum of more outer products.
    """
    rank = count_outer_products(problem)
    if rank > max_rank:
        raise InfluenceError(
            f"This curvature is a sum of {rank:,} outer products, over the limit of {max_rank:,} for exact scores in "
            "function space. Take fewer curvature examples or samples, or certify scores by audit."
        )
    gram = inner_products(np.concatenate([curvature_rows(problem), gradients]))
    values, vectors = np.linalg.eigh(gram[:rank, :rank])
    return FunctionSpace(
        np.maximum(values, 0.0), gram[rank:, :rank] @ vectors, np.diagonal(gram)[rank:].copy(), gradients.shape[1]
    )


def inner_products(rows: Rows) -> Float[np.ndarray, "n n"]:
    """Return the Gram matrix of rows, with all arithmetic in float64.

    Examples:
        >>> import numpy as np
        >>> inner_products(np.asarray([[1, 2], [3, 4]], np.float32)).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """
    gram = np.zeros((len(rows), len(rows)))
    for begin in range(0, rows.shape[1], _CHUNK):
        part = rows[:, begin : begin + _CHUNK].astype(np.float64)
        gram += part @ part.T
    return gram


def curvature_rows(problem: Problem) -> Rows:
    """Return the rows of A, `C = AᵀA`, in the order of `trees.ravel`.

    They are ordered by batch, and within a batch by draw.
    """
    count = problem.batches.index.shape[0]
    draws = problem.samples if problem.curvature == "fisher" else 1
    parts = [
        np.asarray(_rows_of(problem, jax.tree.map(lambda leaf, i=i: leaf[i], problem.batches)))
        / math.sqrt(draws * count)
        for i in range(count)
    ]
    return np.concatenate(parts)


@jax.jit
def _rows_of(problem: Problem, batch: Batch) -> Float[Array, "n size"]:
    """Return the gradients of one batch as rows."""
    gradients = batch_gradients(problem, batch, problem.samples)
    return materialise(gradients) if isinstance(gradients, ExampleGradients) else trees.ravel_batch(gradients)


def materialise(gradients: ExampleGradients) -> Float[Array, "n size"]:
    """Compute every gradient as a row, a few at a time."""

    def one(pair: tuple[Array, Array]) -> Float[Array, " size"]:
        images, cotangents = pair
        _, backward = jax.vjp(lambda params: gradients.network(params, gradients.frozen, images), gradients.params)
        return trees.ravel(backward(cotangents)[0])

    pairs = jax.numpy.swapaxes(gradients.images, 0, 1), jax.numpy.swapaxes(gradients.cotangents, 0, 1)
    return jax.lax.map(one, pairs)


Kind = Literal["dense", "function_space", "certified"]


class Truth(NamedTuple):
    """The exact scores of examples at one damping, or bounds of them.

    Attributes:
        relative: λ over the mean eigenvalue.
        damping: λ.
        lower: A lower bound.
        upper: An upper bound; equal to the lower one if the score is exact up to rounding.
    """

    relative: float
    damping: float
    lower: Float[np.ndarray, " examples"]
    upper: Float[np.ndarray, " examples"]


class _Task(NamedTuple):
    """The arguments of `exact_scores` that every kind reads."""

    problem: Problem
    measurement: Objective
    batches: Sequence[Batch]
    relative: Sequence[float]
    scoring: Scoring
    settings: Audit


def exact_scores(
    kind: Kind,
    problem: Problem,
    measurement: Objective,
    batches: Sequence[Batch],
    valid: np.ndarray,
    relative: Sequence[float],
    scoring: Scoring,
    settings: Audit = Audit(),
) -> list[Truth]:
    """Compute the scores of examples at several dampings, exactly or between bounds.

    Args:
        kind: `dense` decomposes the matrix of all parameters; `function_space` the Gram matrix of the outer products
            whose sum is a Fisher; `certified` bounds every score by Lanczos quadrature, at any size.
        problem: C.
        measurement: The objective that is scored.
        batches: The examples, in batches of one shape.
        valid: Which rows of all batches together are examples.
        relative: Dampings over the mean eigenvalue.
        scoring: Draws, their noise and the estimand.
        settings: How narrow certificates are.

    Raises:
        InfluenceError: The problem is too large for that kind, or has another curvature.
    """
    of = {"dense": _dense, "function_space": _function_space, "certified": _certify}[kind]
    truths = of(_Task(problem, measurement, batches, relative, scoring, settings))
    return [each._replace(lower=each.lower[valid], upper=each.upper[valid]) for each in truths]


def _dense(task: _Task) -> list[Truth]:
    """Compute the scores from the eigendecomposition of the dense matrix."""
    problem, measurement, batches, relative, scoring, _ = task
    backend = Exact()
    state = fit(backend, problem, randomness.root(scoring.seed, Stream.BACKEND))
    every = []
    for share in relative:
        damping = scalar(backend.resolve(state, Damping(share)))
        parts = [_dense_scores(measurement, scoring, state, problem, batch, damping) for batch in batches]
        scores = np.concatenate([np.asarray(each, np.float64) for each in parts])
        every.append(Truth(share, float(damping), scores, scores))
    return every


@functools.partial(jax.jit, static_argnums=(0, 1))
def _dense_scores(
    measurement: Objective, scoring: Scoring, state: ExactState, problem: Problem, batch: Batch, damping: Array
) -> Array:
    """Score one batch by the dense matrix."""
    measurements = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
    return estimate(Exact().draw_gram(state, measurements.gradients, damping).values, scoring.estimand).score


def _function_space(task: _Task) -> list[Truth]:
    """Compute the scores in function space."""
    problem, measurement, batches, relative, scoring, _ = task
    if scoring.estimand != "mean_of_scores":
        raise InfluenceError(
            f"Exact scores in function space need the estimand mean_of_scores, got estimand={scoring.estimand!r}."
        )
    count_outer_products(problem)
    rows = [np.asarray(_gradients(measurement, scoring, problem, batch)) for batch in batches]
    space = function_space(problem, np.concatenate(rows))
    every = []
    for share in relative:
        damping = share * space.mean_eigenvalue
        forms = np.split(space.forms(damping), len(batches))
        scores = np.concatenate([np.mean(each.reshape(scoring.draws, -1), axis=0) for each in forms])
        every.append(Truth(share, damping, scores, scores))
    return every


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(measurement: Objective, scoring: Scoring, problem: Problem, batch: Batch) -> Float[Array, "n size"]:
    """Return the gradients of all draws of a batch as rows."""
    measurements = measure(measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws)
    return materialise(measurements.gradients)


def _certify(task: _Task) -> list[Truth]:
    """Bound the scores by certificates."""
    problem, measurement, batches, relative, scoring, settings = task
    run = jax.jit(certify, static_argnums=(1, 5, 6))
    every, shared = [], prepare_shared(problem, settings)
    rounding = randomness.root(settings.seed, Stream.ROUNDING)
    for share in relative:
        damping = absolute_damping(problem, Damping(share), settings)
        parts = [
            run(problem, measurement, batch, damping, rounding, scoring, settings.program, shared) for batch in batches
        ]
        lower, upper = (
            np.concatenate([np.asarray(getattr(part, side), np.float64) for part in parts])
            for side in ("lower", "upper")
        )
        every.append(Truth(share, float(damping), lower, upper))
    return every


def choose_kind(problem: Problem, dense: int = 3000, rank: int = 4096) -> Kind:
    """Return the cheapest kind of exact scores that the problem allows.

    Args:
        problem: C.
        dense: Largest number of parameters of a dense matrix.
        rank: Largest number of outer products in function space.
    """
    if trees.size(problem.params) <= dense:
        return "dense"
    if problem.curvature in ("fisher", "empirical_fisher") and count_outer_products(problem) <= rank:
        return "function_space"
    return "certified"
