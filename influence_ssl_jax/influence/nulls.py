"""The baselines of given examples, which every backend must beat."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.influence.baselines import pixel_variance
from influence_ssl_jax.influence.certificate import keyed
from influence_ssl_jax.influence.comparison import Examples
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch


def nulls(problem: Problem, examples: Examples) -> dict[str, Float[np.ndarray, " examples"]]:
    """Alignment loss, gradient norm (root mean square over draws) and pixel variance of every example."""

    @jax.jit
    def run(problem: Problem, batch: Batch) -> tuple[Array, Array, Array]:
        drawn, draws = keyed(batch, examples.scoring), examples.scoring.draws
        found = measured(examples.measurement, problem.params, problem.frozen, drawn, draws)
        squared = jnp.sum(trees.ravel_batch(found.gradients.full()) ** 2, axis=1).reshape(draws, -1)
        return jnp.mean(found.values, axis=0), jnp.sqrt(jnp.mean(squared, axis=0)), pixel_variance(batch.image)

    columns = zip(*(run(problem, batch) for batch in examples.batches), strict=True)
    names = ("alignment loss", "gradient norm", "pixel variance")
    return {
        name: np.concatenate([np.asarray(part, np.float64) for part in column])[examples.valid]
        for name, column in zip(names, columns, strict=True)
    }
