"""Does the choice of the curvature change the ranking? Exact scores by several, correlated, on a net with a dense matrix."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp.backend import Damping, whole
from influence_ssl_jax.ihvp.exact import Exact
from influence_ssl_jax.influence.agreement import spearman
from influence_ssl_jax.influence.certificate import keyed
from influence_ssl_jax.influence.comparison import Examples
from influence_ssl_jax.influence.nulls import nulls
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch


def rankings(
    problems: Mapping[str, Problem], examples: Examples, damping: Damping = Damping()
) -> dict[str, dict[str, float]]:
    """Spearman's correlation between the exact scores by every curvature and by the baselines.

    Where `C + λI` is not positive definite, λ is 1.1 times the most negative eigenvalue instead, and the name says so.

    Args:
        problems: Curvatures by name, at the same parameters.
        examples: What is scored, one draw each.
        damping: λ.
    """
    scores: dict[str, np.ndarray] = {}
    for name, problem in problems.items():
        said, values = _exact(problem, examples, damping)
        scores[name + said] = values
    scores |= nulls(next(iter(problems.values())), examples)
    return {left: {right: spearman(a, b) for right, b in scores.items()} for left, a in scores.items()}


def _exact(problem: Problem, examples: Examples, damping: Damping) -> tuple[str, Float[np.ndarray, " examples"]]:
    """A remark on the damping, and the scores."""
    backend = Exact()
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    smallest, said = float(backend.smallest_eigenvalue(state)), ""
    if smallest + float(whole(damping.resolve(backend.mean_eigenvalue(state)))) <= 0:
        damping, said = Damping(absolute=-1.1 * smallest), ", λ = 1.1 |least eigenvalue|"
    resolved = backend.resolve(state, damping)

    @jax.jit
    def run(batch: Batch) -> Array:
        drawn = keyed(batch, examples.scoring)
        found = measured(examples.measurement, problem.params, problem.frozen, drawn, 1)
        return backend.quadratic_form(state, found.gradients, resolved)

    return said, np.concatenate([np.asarray(run(batch)) for batch in examples.batches])[examples.valid]
