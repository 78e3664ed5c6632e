"""The pipeline on problems that the theory knows in closed form: four grey pixels, drawn noise, any network."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.data import Arrays, ToInput
from influence_ssl_jax.ihvp import CG, Damping
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.scoring.stream import self_influence
from influence_ssl_jax.types import Batch
from tests import problems

EXAMPLES, SIDE, OUTPUTS = 5, 2, 3
DAMPING = 0.02
CONJUGATE = CG(tolerance=1e-14, iterations=100)
SETTINGS = Scoring(Damping(absolute=DAMPING), draws=1, batch_size=EXAMPLES, seed=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (EXAMPLES, SIDE, SIDE, 1), dtype=np.uint8)


class Tanh(nn.Module):
    """Two hidden layers, biases included."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = jnp.tanh(nn.Dense(4)(x.reshape(x.shape[0], -1)))
        return nn.Dense(OUTPUTS)(jnp.tanh(nn.Dense(4)(x)))


def problem(loss, module=None, curvature="ggn", seed=1) -> Problem:
    """All examples as the curvature set, each with the perturbation that it has when it is scored."""
    module = Linear(OUTPUTS) if module is None else module
    params, frozen = problems.variables(module, seed, SIDE, 1)
    objective = Objective(Network(module), GaussianNoise(sigma=0.3), loss)
    own = [randomness.branch(jax.random.fold_in(SETTINGS.key, i), Stream.PERTURBATIONS) for i in range(EXAMPLES)]
    keys = jnp.stack([jax.random.fold_in(key, 0) for key in own])
    batch = Batch(jnp.asarray(PIXELS), keys, jnp.arange(EXAMPLES), jnp.full(EXAMPLES, -1))
    return Problem(params, frozen, jax.tree.map(lambda leaf: leaf[None], batch), objective, curvature)


def only(whole: Problem, index: int) -> Problem:
    """The same problem with one example as its curvature set; as often as before, so that nothing is compiled again."""
    alone = jnp.full(EXAMPLES, index)
    return dataclasses.replace(whole, batches=jax.tree.map(lambda leaf: leaf[:, alone], whole.batches))


def views(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and perturbed inputs, one per row."""
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)
    clean, perturbed = problem.objective.images(batch, jnp.float64).reshape(2, EXAMPLES, SIDE**2)
    return clean, perturbed


def scores(problem: Problem, backend, settings: Scoring = SETTINGS) -> np.ndarray:
    """`self_influence` of the five examples, from 8-bit images to the table."""
    table = self_influence(problem, backend, Arrays(PIXELS).open(), ToInput(SIDE, SIDE, 1), settings)
    assert set(table["reason"].to_pylist()) == {None}
    return table["score"].to_numpy()


def moved_to(problem: Problem, kernel) -> Problem:
    """A linear problem at other parameters: the transpose of W."""
    return dataclasses.replace(problem, params={"dense": {"kernel": kernel}})
