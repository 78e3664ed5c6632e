"""One backend beside the others: what it costs to fit and to score, and its scores of given examples."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp.backend import Backend, Damping
from influence_ssl_jax.influence.estimands import estimate
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch, PyTree


class Contender(NamedTuple):
    """A fitted backend and what fitting cost.

    Attributes:
        backend: Which.
        state: What it learned.
        seconds: Time to fit, compilation not counted.
        megabytes: Memory that fitting takes beside the problem: what it works in and what it keeps.
    """

    backend: Backend
    state: PyTree
    seconds: float
    megabytes: float


class Race(NamedTuple):
    """Scores of given examples and what they cost.

    Attributes:
        scores: One per example.
        alignment_loss: One per example.
        seconds_per_thousand: Time for 1,000 scores, compilation not counted.
        megabytes: Memory that scoring one batch takes beside problem and state.
    """

    scores: Float[np.ndarray, " examples"]
    alignment_loss: Float[np.ndarray, " examples"]
    seconds_per_thousand: float
    megabytes: float


def fitted(backend: Backend, problem: Problem, seed: int = 0) -> Contender:
    """Compile, then fit once and take the time.

    Raises:
        InfluenceError: The backend cannot represent the problem.
    """
    key = jax.random.key(seed)
    compiled = jax.jit(backend.fit).lower(problem, key).compile()
    state, seconds = _timed(compiled, problem, key)
    return Contender(backend, state, seconds, _megabytes(compiled))


def raced(
    contender: Contender,
    problem: Problem,
    measurement: Objective,
    batches: Sequence[Batch],
    damping: Damping,
    scoring: Scoring,
) -> Race:
    """Scores of batches of one shape, at one damping.

    Raises:
        IndefiniteError: C + λI is not positive definite.
    """
    resolved = contender.backend.resolve(contender.state, damping)

    def run(problem: Problem, state: PyTree, batch: Batch, damping: Any) -> tuple[Array, Array]:
        if scoring.noise == "common":
            one = jax.random.key(scoring.seed)
            batch = dataclasses.replace(batch, key=jax.numpy.broadcast_to(one, batch.key.shape))
        found = measured(measurement, problem.params, problem.frozen, batch, scoring.draws)
        form = contender.backend.draw_gram(state, found.gradients, damping)
        return estimate(form.values, scoring.estimand).score, jax.numpy.mean(found.values, axis=0)

    compiled = jax.jit(run).lower(problem, contender.state, batches[0], resolved).compile()
    parts = [_timed(compiled, problem, contender.state, batch, resolved) for batch in batches]
    scores = np.concatenate([np.asarray(found[0], np.float64) for found, _ in parts])
    loss = np.concatenate([np.asarray(found[1], np.float64) for found, _ in parts])
    seconds = sum(part for _, part in parts)
    return Race(scores, loss, 1000 * seconds / len(scores), _megabytes(compiled))


def _timed(compiled: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    found = jax.block_until_ready(compiled(*arguments))
    return found, time.perf_counter() - begun


def _megabytes(compiled: Any) -> float:
    """Temporary and output memory of a compiled function; NaN where the platform does not say."""
    used = compiled.memory_analysis()
    return float("nan") if used is None else (used.temp_size_in_bytes + used.output_size_in_bytes) / 1e6
