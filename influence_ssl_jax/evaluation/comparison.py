"""Compare backends, over a grid of settings, with a sample's exact scores."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import ihvp, randomness, trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.evaluation.calibration import Calibration, Deviation, deviation
from influence_ssl_jax.evaluation.exact import Truth
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.ihvp.backend import Backend, Damping, Grid, scalar
from influence_ssl_jax.ihvp.exact import Exact
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.estimands import estimate
from influence_ssl_jax.scoring.fitting import fit
from influence_ssl_jax.scoring.memory import available_memory
from influence_ssl_jax.scoring.scores import Scoring, assign_keys, pixel_variance
from influence_ssl_jax.types import Batch, PyTree


def backends_to_compare(grid: Grid) -> list[Backend]:
    """Return the settings of backends to compare, cheap backends first."""
    return [each for kind in ihvp.BACKENDS for each in kind.variants(grid)]


def label(backend: Backend) -> str:
    """Name a backend in a few words.

    They are its name, its main setting, and what it does with the complement, if that is not its default.

    Examples:
        >>> label(ihvp.EKFAC(rank=8)), label(ihvp.CG()), label(ihvp.LoGra(8)), label(ihvp.LoGra(8, complement="keep"))
        ('EKFAC 8', 'CG 200', 'LoGra 8', 'LoGra 8 kept')
    """
    settings = {name: getattr(backend, name, None) for name in (*backend.main_settings, "complement", "preconditioner")}
    words = [type(backend).__name__, *(str(settings[name]) for name in backend.main_settings if settings[name])]
    complement = settings["complement"]
    if complement and complement != getattr(type(backend), "complement", None):
        words.append("kept" if complement in ("keep", "mean") else "dropped")
    if settings["preconditioner"]:
        words.append(f"by {label(settings['preconditioner'])}")
    return " ".join(words)


UNCONVERGED = 1e-2
"""Relative residual of a solve above which a row reports it."""


class Row(NamedTuple):
    """The result of one backend at one damping.

    Attributes:
        backend: The backend with its settings; or the name of a baseline.
        damping: λ over the mean eigenvalue.
        fit_seconds: Time to fit, without compilation; NaN if it failed.
        fit_megabytes: Memory that fitting takes beside the problem: working memory and the state.
        seconds_per_thousand: Time for 1,000 scores, without compilation.
        megabytes: Memory that scoring one batch takes beside problem and state.
        residual: Median over examples of the largest relative residual of a solve; zero if the inverse is applied
            directly.
        deviation: How far the scores are from the exact ones; None without scores.
        scores: One for each example; empty if there are none.
        reason: Why there are no scores, or what is wrong with them; empty for good ones.
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
    """The examples that are scored.

    Attributes:
        measurement: The objective that is scored.
        batches: The examples, in batches of one shape.
        valid: Which rows of all batches together are examples.
        scoring: Draws, their noise and the estimand.
    """

    measurement: Objective
    batches: Sequence[Batch]
    valid: np.ndarray
    scoring: Scoring


def compare_backends(
    backends: Sequence[Backend],
    problem: Problem,
    examples: Examples,
    truths: Sequence[Truth],
    calibration: Calibration = Calibration(),
) -> Iterator[Row]:
    """Fit every backend once, and yield a row for each damping.

    A failure is a row with the reason. The damping is one number for the whole matrix in every backend, so all of them
    approximate the same inverse.

    Args:
        backends: The backends.
        problem: C.
        examples: The examples.
        truths: Their exact scores, at each damping.
        calibration: How scores are brought to the exact scale.
    """
    for backend in backends:
        try:
            race = _FittedBackend.of(backend, problem, examples)
        except InfluenceError as error:
            yield from (Row(backend, truth.relative, reason=str(error)) for truth in truths)
            continue
        for truth in truths:
            yield race.row(truth, calibration)


@dataclasses.dataclass(frozen=True)
class _FittedBackend:
    """A fitted backend with a compiled program that scores."""

    backend: Backend
    problem: Problem
    examples: Examples
    state: PyTree
    run: "_Compiled"
    fit_seconds: float
    fit_megabytes: float
    megabytes: float

    @classmethod
    def of(cls, backend: Backend, problem: Problem, examples: Examples) -> "_FittedBackend":
        """Compile, then fit once and measure the time."""
        key = randomness.root(examples.scoring.seed, Stream.BACKEND)
        fit = _Compiled.of(backend.fit, problem, key)
        fit.check_fits(backend)
        state, seconds = _time(fit, problem, key)
        one = jnp.ones((), jax.tree.leaves(problem.params)[0].dtype)
        run = _Compiled.of(functools.partial(_score, backend, examples), problem, state, examples.batches[0], one)
        return cls(backend, problem, examples, state, run, seconds, fit.megabytes, run.megabytes)

    def row(self, truth: Truth, calibration: Calibration) -> Row:
        """Score at one damping, and compare with the exact scores."""
        costs = Row(self.backend, truth.relative, self.fit_seconds, self.fit_megabytes, megabytes=self.megabytes)
        try:
            damping = self.backend.resolve(self.state, Damping(absolute=truth.damping))
            results = [_time(self.run, self.problem, self.state, batch, damping) for batch in self.examples.batches]
            scores, loss, residual = (
                np.concatenate([np.asarray(part[i], np.float64) for part, _ in results])[self.examples.valid]
                for i in range(3)
            )
            seconds = 1000 * sum(taken for _, taken in results) / len(self.examples.valid)
            left = float(np.median(residual))
            costs = costs._replace(seconds_per_thousand=seconds, residual=left, scores=scores, reason=_reason(left))
            return costs._replace(deviation=deviation(scores, truth.lower, truth.upper, loss, calibration))
        except InfluenceError as error:
            return costs._replace(reason=str(error))


def _score(
    backend: Backend, examples: Examples, problem: Problem, state: PyTree, batch: Batch, damping: Array
) -> tuple[Array, Array, Array]:
    """Return score, alignment loss and residual of every example of a batch."""
    scoring = examples.scoring
    measurements = measure(
        examples.measurement, problem.params, problem.frozen, assign_keys(batch, scoring), scoring.draws
    )
    form = backend.draw_gram(state, measurements.gradients, damping)
    return estimate(form.values, scoring.estimand).score, jnp.mean(measurements.values, axis=0), form.residual


def _reason(residual: float) -> str:
    """Say that a solve has not converged; empty if it has."""
    return f"unconverged: relative residual {residual:.2g}" if not residual <= UNCONVERGED else ""


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A function compiled for arguments of one shape, and its reported memory.

    It is compiled on leaves: while it compiles, the trees of arguments hold tracers, which their declared types forbid.
    """

    executable: Any

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any) -> "_Compiled":
        """Compile for arguments of the shapes of these."""
        leaves, structure = jax.tree.flatten(arguments)
        run = jax.jit(lambda leaves: function(*jax.tree.unflatten(structure, leaves)))
        return cls(run.lower(leaves).compile())

    def __call__(self, *arguments: Any) -> Any:
        """Run the program."""
        return self.executable(jax.tree.leaves(arguments))

    def check_fits(self, backend: Backend) -> None:
        """Refuse a program that takes more memory than a device has.

        Raises:
            InfluenceError: It takes more.
        """
        there, platform = available_memory()
        if self.megabytes * 1e6 > there:
            raise InfluenceError(
                f"Fitting {label(backend)} takes {self.megabytes / 1e3:.1f} GB for this network and curvature set, and a "
                f"device ({platform}) has {there / 1e9:.1f} GB."
            )

    @property
    def megabytes(self) -> float:
        """Temporary and output memory.

        It is NaN if the platform does not report it.
        """
        used = self.executable.memory_analysis()
        return float("nan") if used is None else (used.temp_size_in_bytes + used.output_size_in_bytes) / 1e6


def _time(run: _Compiled, *arguments: Any) -> tuple[Any, float]:
    """Run a program, and return its result and the seconds."""
    begun = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return result, time.perf_counter() - begun


def baselines(problem: Problem, examples: Examples) -> dict[str, Float[np.ndarray, " examples"]]:
    """Compute alignment loss, gradient norm and pixel variance of every example.

    The gradient norm is the root mean square over draws.
    """

    @jax.jit
    def run(problem: Problem, batch: Batch) -> tuple[Array, Array, Array]:
        drawn, draws = assign_keys(batch, examples.scoring), examples.scoring.draws
        measurements = measure(examples.measurement, problem.params, problem.frozen, drawn, draws)
        squared = jnp.sum(trees.ravel_batch(measurements.gradients.full()) ** 2, axis=1).reshape(draws, -1)
        return jnp.mean(measurements.values, axis=0), jnp.sqrt(jnp.mean(squared, axis=0)), pixel_variance(batch.image)

    columns = zip(*(run(problem, batch) for batch in examples.batches), strict=True)
    names = ("alignment loss", "gradient norm", "pixel variance")
    return {
        name: np.concatenate([np.asarray(part, np.float64) for part in column])[examples.valid]
        for name, column in zip(names, columns, strict=True)
    }


def rankings(
    problems: Mapping[str, Problem], examples: Examples, damping: Damping = Damping()
) -> dict[str, dict[str, float]]:
    """Compute Spearman correlations of all curvatures' exact scores and the baselines.

    If `C + λI` is not positive definite, λ is 1.1 times the magnitude of the most negative eigenvalue instead, and the
    name says so.

    Args:
        problems: Curvatures by name, at the same parameters.
        examples: The examples, with one draw each.
        damping: λ.
    """
    scores: dict[str, np.ndarray] = {}
    for name, problem in problems.items():
        remark, values = _exact(problem, examples, damping)
        scores[name + remark] = values
    scores |= baselines(next(iter(problems.values())), examples)
    return {left: {right: spearman(a, b) for right, b in scores.items()} for left, a in scores.items()}


def _exact(problem: Problem, examples: Examples, damping: Damping) -> tuple[str, Float[np.ndarray, " examples"]]:
    """Return a remark on the damping, and the exact scores."""
    backend = Exact()
    state = fit(backend, problem, randomness.root(examples.scoring.seed, Stream.BACKEND))
    smallest, remark = float(backend.smallest_eigenvalue(state)), ""
    if smallest + float(scalar(damping.resolve(backend.mean_eigenvalue(state)))) <= 0:
        damping, remark = Damping(absolute=-1.1 * smallest), ", λ = 1.1 |least eigenvalue|"
    resolved = backend.resolve(state, damping)

    @jax.jit
    def run(batch: Batch) -> Array:
        drawn = assign_keys(batch, examples.scoring)
        measurements = measure(examples.measurement, problem.params, problem.frozen, drawn, 1)
        return backend.quadratic_form(state, measurements.gradients, resolved)

    return remark, np.concatenate([np.asarray(run(batch)) for batch in examples.batches])[examples.valid]
