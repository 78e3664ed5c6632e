"""Exact scores to compare with: from the dense matrix, from its outer products, or as certified bounds."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp.backend import Damping, whole
from influence_ssl_jax.ihvp.exact import Exact, ExactState
from influence_ssl_jax.influence.audit import absolute_damping
from influence_ssl_jax.influence.certificate import Audit, certify, keyed, shared_subspace
from influence_ssl_jax.influence.estimands import estimate
from influence_ssl_jax.influence.function_space import function_space, materialised, rank_of
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch

Kind = Literal["dense", "function_space", "certified"]


class Truth(NamedTuple):
    """What the exact scores of some examples lie between, at one damping.

    Attributes:
        relative: λ over the mean eigenvalue.
        damping: λ.
        lower: A bound from below.
        upper: A bound from above; equal to it where the score is exact up to rounding.
    """

    relative: float
    damping: float
    lower: Float[np.ndarray, " examples"]
    upper: Float[np.ndarray, " examples"]


class _Given(NamedTuple):
    problem: Problem
    measurement: Objective
    batches: Sequence[Batch]
    relative: Sequence[float]
    scoring: Scoring
    settings: Audit


def truths(
    kind: Kind,
    problem: Problem,
    measurement: Objective,
    batches: Sequence[Batch],
    valid: np.ndarray,
    relative: Sequence[float],
    scoring: Scoring,
    settings: Audit = Audit(),
) -> list[Truth]:
    """The scores of given examples at several dampings.

    Args:
        kind: `dense` takes the matrix of all parameters apart; `function_space` the Gram matrix of the outer products
            that a Fisher is made of; `certified` bounds every score by Lanczos quadrature, at any size.
        problem: C.
        measurement: What is scored.
        batches: The examples, in batches of one shape.
        valid: Which rows of all batches together are examples.
        relative: Dampings over the mean eigenvalue.
        scoring: Draws, their noise and the estimand.
        settings: How narrow certificates are.

    Raises:
        InfluenceError: The problem is too large, or of another curvature, for that kind.
    """
    of = {"dense": _dense, "function_space": _function_space, "certified": _certified}[kind]
    found = of(_Given(problem, measurement, batches, relative, scoring, settings))
    return [each._replace(lower=each.lower[valid], upper=each.upper[valid]) for each in found]


def _dense(given: _Given) -> list[Truth]:
    problem, measurement, batches, relative, scoring, _ = given
    backend = Exact()
    state = jax.jit(backend.fit)(problem, jax.random.key(scoring.seed))

    def run(state: ExactState, problem: Problem, batch: Batch, damping: Array) -> Array:
        found = measured(measurement, problem.params, problem.frozen, keyed(batch, scoring), scoring.draws)
        return estimate(backend.draw_gram(state, found.gradients, damping).values, scoring.estimand).score

    score = jax.jit(run)
    every = []
    for share in relative:
        damping = whole(backend.resolve(state, Damping(share)))
        scores = np.concatenate([np.asarray(score(state, problem, batch, damping), np.float64) for batch in batches])
        every.append(Truth(share, float(damping), scores, scores))
    return every


def _function_space(given: _Given) -> list[Truth]:
    problem, measurement, batches, relative, scoring, _ = given
    if scoring.estimand != "mean_of_scores":
        raise InfluenceError(f"Exact scores in function space are a mean_of_scores, got estimand={scoring.estimand!r}.")
    rank_of(problem)

    @jax.jit
    def gradients(problem: Problem, batch: Batch) -> Float[Array, "n size"]:
        found = measured(measurement, problem.params, problem.frozen, keyed(batch, scoring), scoring.draws)
        return materialised(found.gradients)

    rows = [np.asarray(gradients(problem, batch)) for batch in batches]
    space = function_space(problem, np.concatenate(rows))
    every = []
    for share in relative:
        damping = share * space.mean_eigenvalue
        forms = np.split(space.forms(damping), len(batches))
        scores = np.concatenate([np.mean(each.reshape(scoring.draws, -1), axis=0) for each in forms])
        every.append(Truth(share, damping, scores, scores))
    return every


def _certified(given: _Given) -> list[Truth]:
    problem, measurement, batches, relative, scoring, settings = given
    run = jax.jit(certify, static_argnums=(1, 5, 6))
    every, shared = [], shared_subspace(problem, settings)
    for share in relative:
        damping = absolute_damping(problem, Damping(share), settings)
        found = [
            run(problem, measurement, batch, damping, jax.random.key(number), scoring, settings, shared)
            for number, batch in enumerate(batches)
        ]
        lower, upper = (
            np.concatenate([np.asarray(getattr(part, side), np.float64) for part in found])
            for side in ("lower", "upper")
        )
        every.append(Truth(share, float(damping), lower, upper))
    return every


def kind_for(problem: Problem, dense: int = 3000, rank: int = 4096) -> Kind:
    """The cheapest kind that the problem allows."""
    if trees.size(problem.params) <= dense:
        return "dense"
    if problem.curvature in ("fisher", "empirical_fisher") and rank_of(problem) <= rank:
        return "function_space"
    return "certified"
