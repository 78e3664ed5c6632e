"""Training to convergence: `(1/n) Σ w_i ℓ_i(θ) + λ/2 ‖θ − θ₀‖²` by L-BFGS in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array

from influence_ssl_jax import trees
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params


class Trainer:
    """Compiled once for every weighting of the examples.

    Args:
        problem: Its parameters are θ₀, its one batch the training set; the loss is separable.
        ridge: λ.
    """

    def __init__(self, problem: Problem, ridge: float) -> None:
        self.problem = problem
        self.train = jax.tree.map(lambda leaf: leaf[0], problem.batches)
        anchor = trees.ravel(problem.params)

        def total(flat: Array, weights: Array) -> Array:
            values = self._values(trees.unravel(problem.params, flat), self.train)
            return jnp.mean(weights * values) + ridge / 2 * jnp.sum((flat - anchor) ** 2)

        self._total = jax.jit(jax.value_and_grad(total))
        self._of_train = jax.jit(lambda params: self._values(params, self.train))
        self._of_batch = jax.jit(lambda params, batch: jnp.mean(self._values(params, batch)))

    def fit(self, weights: np.ndarray, start: Params) -> tuple[Params, float]:
        """Compute the optimum, and the largest entry of its gradient."""
        minimum = scipy.optimize.minimize(
            lambda flat: tuple(np.asarray(value) for value in self._total(flat, weights)),
            np.asarray(trees.ravel(start)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20000, "maxfun": 40000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50},
        )
        gradient = float(np.max(np.abs(self._total(minimum.x, weights)[1])))
        return trees.unravel(start, jnp.asarray(minimum.x)), gradient

    def values(self, params: Params) -> np.ndarray:
        """Compute ℓ_i of every training example."""
        return np.asarray(self._of_train(params))

    def mean_loss(self, params: Params, batch: Batch) -> float:
        """Compute the mean loss of other examples."""
        return float(self._of_batch(params, batch))

    def _values(self, params: Params, batch: Batch) -> Array:
        objective = self.problem.objective
        return jax.vmap(lambda y: objective.loss.head(y[None]))(objective.outputs(params, self.problem.frozen, batch))
