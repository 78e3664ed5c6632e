"""Backends side by side on one problem: what each costs to fit and to score, and how far its scores are from the truth."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp.backend import Backend, Damping
from influence_ssl_jax.influence.calibration import Calibration
from influence_ssl_jax.influence.deviation import Deviation, deviation
from influence_ssl_jax.influence.estimands import estimate
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.influence.truth import Truth
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch, PyTree

UNCONVERGED = 1e-2
"""Relative residual of a solve above which a row says so."""


class Row(NamedTuple):
    """One backend at one damping.

    Attributes:
        backend: Which, with its settings; or the name of a baseline.
        damping: λ over the mean eigenvalue.
        fit_seconds: Time to fit, compilation not counted; NaN where it failed.
        fit_megabytes: Memory that fitting takes beside the problem: what it works in and what it keeps.
        seconds_per_thousand: Time for 1,000 scores, compilation not counted.
        megabytes: Memory that scoring one batch takes beside problem and state.
        residual: Median over examples of the worst relative residual of a solve; zero where the inverse is applied directly.
        deviation: How far the scores are from the truth; None where there are none.
        scores: One per example; empty where there are none.
        reason: Why there are none, or what is the matter with them; empty for good ones.
    """

    backend: Backend | str
    damping: float
    fit_seconds: float = float("nan")
    fit_megabytes: float = float("nan")
    seconds_per_thousand: float = float("nan")
    megabytes: float = float("nan")
    residual: float = float("nan")
    deviation: Deviation | None = None
    scores: Float[np.ndarray, " examples"] = np.zeros(0)
    reason: str = ""


class Examples(NamedTuple):
    """What is scored.

    Attributes:
        measurement: What is measured of them.
        batches: The examples, in batches of one shape.
        valid: Which rows of all batches together are examples.
        scoring: Draws, their noise and the estimand.
    """

    measurement: Objective
    batches: Sequence[Batch]
    valid: np.ndarray
    scoring: Scoring


def compared(
    backends: Sequence[Backend],
    problem: Problem,
    examples: Examples,
    truths: Sequence[Truth],
    calibration: Calibration = Calibration(),
) -> Iterator[Row]:
    """Every backend, fitted once, at the damping of every truth; what fails is a row with the reason.

    The damping is one number for the whole matrix in every backend, so that all of them approximate the same inverse.
    """
    for backend in backends:
        try:
            race = _Race.of(backend, problem, examples)
        except InfluenceError as error:
            yield from (Row(backend, truth.relative, reason=str(error)) for truth in truths)
            continue
        for truth in truths:
            yield race.row(truth, calibration)


@dataclasses.dataclass(frozen=True)
class _Race:
    """A fitted backend, compiled to score."""

    backend: Backend
    problem: Problem
    examples: Examples
    state: PyTree
    run: "_Compiled"
    fit_seconds: float
    fit_megabytes: float
    megabytes: float

    @classmethod
    def of(cls, backend: Backend, problem: Problem, examples: Examples) -> "_Race":
        """Compile, then fit once and take the time."""
        key = jax.random.key(examples.scoring.seed)
        fit = _Compiled.of(backend.fit, problem, key)
        state, seconds = _timed(fit, problem, key)
        one = jnp.ones((), jax.tree.leaves(problem.params)[0].dtype)
        run = _Compiled.of(functools.partial(_score, backend, examples), problem, state, examples.batches[0], one)
        return cls(backend, problem, examples, state, run, seconds, fit.megabytes, run.megabytes)

    def row(self, truth: Truth, calibration: Calibration) -> Row:
        """Scores at one damping, and how good they are."""
        costs = Row(self.backend, truth.relative, self.fit_seconds, self.fit_megabytes, megabytes=self.megabytes)
        try:
            damping = self.backend.resolve(self.state, Damping(absolute=truth.damping))
            found = [_timed(self.run, self.problem, self.state, batch, damping) for batch in self.examples.batches]
            scores, loss, residual = (
                np.concatenate([np.asarray(part[i], np.float64) for part, _ in found])[self.examples.valid]
                for i in range(3)
            )
            seconds = 1000 * sum(taken for _, taken in found) / len(self.examples.valid)
            left = float(np.median(residual))
            costs = costs._replace(seconds_per_thousand=seconds, residual=left, scores=scores, reason=_doubt(left))
            return costs._replace(deviation=deviation(scores, truth.lower, truth.upper, loss, calibration))
        except InfluenceError as error:
            return costs._replace(reason=str(error))


def _score(
    backend: Backend, examples: Examples, problem: Problem, state: PyTree, batch: Batch, damping: Array
) -> tuple[Array, Array, Array]:
    """Score, alignment loss and residual of every example of a batch."""
    scoring = examples.scoring
    if scoring.noise == "common":
        batch = dataclasses.replace(batch, key=jnp.broadcast_to(jax.random.key(scoring.seed), batch.key.shape))
    found = measured(examples.measurement, problem.params, problem.frozen, batch, scoring.draws)
    form = backend.draw_gram(state, found.gradients, damping)
    return estimate(form.values, scoring.estimand).score, jnp.mean(found.values, axis=0), form.residual


def _doubt(residual: float) -> str:
    return f"unconverged: relative residual {residual:.2g}" if not residual <= UNCONVERGED else ""


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A function compiled for arguments of one shape, and the memory that it says it takes.

    It is compiled on leaves: a tree of what stands for arrays while compiling is none of the trees that types describe.
    """

    executable: Any

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any) -> "_Compiled":
        """Compile for arguments like these."""
        leaves, structure = jax.tree.flatten(arguments)
        run = jax.jit(lambda leaves: function(*jax.tree.unflatten(structure, leaves)))
        return cls(run.lower(leaves).compile())

    def __call__(self, *arguments: Any) -> Any:
        """Run."""
        return self.executable(jax.tree.leaves(arguments))

    @property
    def megabytes(self) -> float:
        """Temporary and output memory; NaN where the platform does not say."""
        used = self.executable.memory_analysis()
        return float("nan") if used is None else (used.temp_size_in_bytes + used.output_size_in_bytes) / 1e6


def _timed(run: _Compiled, *arguments: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    found = jax.block_until_ready(run(*arguments))
    return found, time.perf_counter() - begun
