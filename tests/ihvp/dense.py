"""A small problem whose matrix and gradients are held densely."""

import dataclasses
import functools

import jax
import numpy as np

from influence_ssl_jax import trees
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp import Exact
from influence_ssl_jax.losses import CosineDistance, SquaredEuclid
from tests import problems


@functools.cache
def dense(curvature="ggn", module="conv"):
    """A small problem, its matrix and gradients of a measurement, all dense."""
    linear = module == "linear"
    net = problems.Linear() if linear else problems.Small()
    loss = SquaredEuclid() if linear else CosineDistance()
    problem = problems.problem(loss, curvature, module=net, image=3 if linear else 6)
    state = jax.jit(Exact().fit)(problem, jax.random.key(0))
    matrix = (state.eigenvectors * state.eigenvalues[None]) @ state.eigenvectors.T
    measurement = problems.objective(CosineDistance(), net)
    gradients = jax.jit(measure, static_argnums=(0, 4))(
        measurement, problem.params, problem.frozen, problems.first_batch(problem), 2
    ).gradients
    rows = trees.ravel_batch(jax.jit(type(gradients).full)(gradients))
    return problem, np.asarray(matrix), gradients, np.asarray(rows)


@dataclasses.dataclass(frozen=True)
class DrawnInDouble(Views):
    """Views that are drawn in float64 and cast: JAX draws other numbers for another dtype."""

    drawn: Views

    def __call__(self, key, image):
        return self.drawn(key, image.astype("float64")).astype(image.dtype)


def single(problem, gradients):
    """The same matrix and the same gradients in float32."""
    objective = dataclasses.replace(problem.objective, views=DrawnInDouble(problem.objective.views))
    return trees.astype((dataclasses.replace(problem, objective=objective), gradients), "float32")
