"""Rigorous intervals for every example from one shared Krylov subspace: no product with C for any of them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.data.loader import batches
from influence_ssl_jax.data.source import OpenSource
from influence_ssl_jax.data.transform import ToInput
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.ihvp.arnoldi import Arnoldi, ArnoldiState, galerkin_interval
from influence_ssl_jax.influence.certificate import keyed
from influence_ssl_jax.influence.memory import available, memory_of
from influence_ssl_jax.influence.scores import Scoring
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch


def galerkin(
    problem: Problem,
    state: ArnoldiState,
    source: OpenSource,
    transform: ToInput,
    damping: Float[Array, ""],
    scoring: Scoring,
    measurement: Objective,
) -> Iterator[pa.Table]:
    """Columns `index, galerkin_lo, galerkin_hi`, a batch at a time: the mean over draws of `ihvp.arnoldi`'s interval.

    Wide where the subspace leaves much of a gradient; what cannot be read has no row, and an undefined score NaN.

    Raises:
        InfluenceError: The estimand is not a mean of scores.
        CurvatureError: The curvature is a Hessian.
    """
    if scoring.estimand != "mean_of_scores":
        raise InfluenceError(f"Galerkin intervals are of a mean_of_scores, got estimand={scoring.estimand!r}.")

    @jax.jit
    def run(problem: Problem, state: ArnoldiState, batch: Batch) -> tuple[Array, Array]:
        found = measured(measurement, problem.params, problem.frozen, keyed(batch, scoring), scoring.draws)
        interval = galerkin_interval(state, found.gradients, damping)
        lower, upper = (jnp.mean(side.reshape(scoring.draws, -1), axis=0) for side in interval)
        return jnp.where(found.degenerate, jnp.nan, lower), jnp.where(found.degenerate, jnp.nan, upper)

    shape = problem.batches.image.shape[2:]
    held = (measurement, problem.params, problem.frozen, Arnoldi(), state, shape, scoring.draws)
    size = scoring.batch_size or memory_of(*held).batch_size(*available())
    for loaded in batches(source, transform, size, jax.random.key(scoring.seed)):
        lower, upper = run(problem, state, loaded.batch)
        yield pa.table(
            {
                "index": pa.array(np.asarray(loaded.batch.index)[loaded.valid].astype(np.int64)),
                "galerkin_lo": np.asarray(lower, np.float64)[loaded.valid],
                "galerkin_hi": np.asarray(upper, np.float64)[loaded.valid],
            }
        )
