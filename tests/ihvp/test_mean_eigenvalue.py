"""tr(C)/P, from which the default damping is resolved, where every backend must have it exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.curvature.products import mean_eigenvalue
from influence_ssl_jax.ihvp import BACKENDS, CG, KFAC, Arnoldi, Damping, Identity, Nystrom
from influence_ssl_jax.losses import SquaredEuclid
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.runs.score import describe_damping
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.types import Batch
from tests import problems
from tests.ihvp.fitted import SMALL

SIDE, BATCHES, SIZE = 3, 2, 5


@dataclasses.dataclass(frozen=True)
class AgainstBlack(Views):
    """The image beside a black one."""

    def __call__(self, key, image):
        del key
        return jnp.stack([image, jnp.zeros_like(image)])


@functools.cache
def one_pixel():
    """A linear net of one output over images of one bright pixel: C is diagonal, and tr(C) known by hand.

    With `ℓ_i = (w·x_i)²` the gradient is `2 (w·x_i) x_i`, of one entry; C is the mean of their squares. A probe of signs
    then finds the trace without error.
    """
    rng = np.random.default_rng(0)
    places, levels = rng.integers(SIDE * SIDE, size=BATCHES * SIZE), rng.uniform(0.5, 1.5, BATCHES * SIZE)
    pixels = levels[:, None] * np.eye(SIDE * SIDE)[places]
    weights = rng.normal(size=SIDE * SIDE)
    keys = jax.random.split(jax.random.key(0), (BATCHES, SIZE))
    images = jnp.asarray(pixels.reshape(BATCHES, SIZE, SIDE, SIDE, 1))
    batches = Batch(images, keys, jnp.arange(BATCHES * SIZE).reshape(BATCHES, SIZE), None)
    objective = Objective(Network(problems.Linear(1)), AgainstBlack(), SquaredEuclid())
    params = {"linear": {"kernel": jnp.asarray(weights[:, None])}}
    problem = Problem(params, {}, batches, objective, "empirical_fisher")
    return problem, float(np.mean(np.sum((2 * (pixels @ weights)[:, None] * pixels) ** 2, axis=1))) / weights.size


@pytest.mark.parametrize("kind", BACKENDS, ids=lambda kind: kind.__name__)
def test_the_mean_eigenvalue_and_the_default_damping_are_those_of_the_matrix(kind):
    problem, want = one_pixel()
    backend = SMALL[kind]
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    (mean,) = jax.tree.leaves(backend.mean_eigenvalue(state))
    np.testing.assert_allclose(float(mean), want, rtol=1e-9)
    (damping,) = jax.tree.leaves(backend.resolve(state, Damping()))
    np.testing.assert_allclose(float(damping), 0.1 * want, rtol=1e-9)


def standardised(problem):
    """What the linear net reads of every example and view, [8, 2, pixels]."""
    views = jax.vmap(jax.vmap(problem.objective.views))(problem.batches.key, problem.batches.image)
    return (np.asarray(views).reshape(8, 2, -1) - 0.4) / 0.5


def test_the_estimate_is_the_mean_over_its_probes():
    problem = problems.problem(SquaredEuclid(), module=problems.Linear(), image=3)
    size = trees.size(problem.params)
    inputs = standardised(problem)
    apart = 2**0.5 * (inputs[:, 0] - inputs[:, 1])
    want = 3 * np.mean(np.sum(apart**2, axis=1)) / size  # the mean over 8 examples of I₃ ⊗ r rᵀ
    matrix = np.kron(np.eye(3), apart.T @ apart / 8)
    off = np.linalg.norm(matrix - np.diag(np.diag(matrix)))
    estimate = jax.jit(mean_eigenvalue, static_argnums=2)(problem, jax.random.key(2), 300)
    error = 2**0.5 * off / size / 300**0.5
    assert abs(float(estimate.value) - want) < 4 * error
    np.testing.assert_allclose(float(estimate.error), error / want, rtol=4 / (2 * 300) ** 0.5)


@pytest.mark.parametrize("backend", [Arnoldi(rank=1, probes=8), Nystrom(rank=1, probes=8)], ids=["Arnoldi", "Nystrom"])
def test_what_a_subspace_leaves_is_estimated_as_well_as_is_said(backend):
    """Over 40 fits of one matrix the estimates spread as far as each fit says, which its 8 probes tell within a third."""
    problem = problems.problem(SquaredEuclid(), module=problems.Linear(), image=3)
    matrix = np.kron(
        np.eye(3), np.mean([2 * np.outer(d, d) for d in -np.diff(standardised(problem), axis=1)[:, 0]], axis=0)
    )
    fit = jax.jit(lambda key: (lambda state: (state.mean, state.error))(backend.fit(problem, key)))
    means, errors = np.array([fit(key) for key in jax.random.split(jax.random.key(3), 40)]).T
    off = means / (np.trace(matrix) / len(matrix)) - 1
    assert np.sqrt(np.mean(off**2)) > 0.01
    assert 0.6 < np.sqrt(np.mean(errors**2) / np.mean(off**2)) < 1.6


def test_the_record_of_a_run_says_how_uncertain_relative_damping_is():
    problem = problems.problem(SquaredEuclid(), module=problems.Linear(), image=3)
    backend = Identity()
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    blocks = state.blocks

    def recorded(damping):
        settings = Scoring(damping, batch_size=1)
        return describe_damping(
            Scorer(problem, state, backend.resolve(state, damping), problem.objective, backend, settings, blocks)
        )

    entry = recorded(Damping(0.1))
    assert entry["resolved"] == 0.1 * float(state.level)
    assert entry["relative_standard_error"] == float(state.error) > 0
    assert recorded(Damping(absolute=2.0)) == {"resolved": 2.0}
    backend = CG(probes=4, lanczos_steps=20)
    state = jax.jit(backend.fit)(problem, jax.random.key(1))
    share = Damping(effective_dimension=0.3)
    spectrum = backend.spectrum(state)
    error, (low, high) = share.error_by_spectrum(spectrum), share.bounds_by_spectrum(spectrum)
    entry = recorded(share)
    assert entry["relative_standard_error"] == error > 0
    assert entry["bounds"] == [low, high]
    assert 0 < low <= entry["resolved"] <= high < np.inf


def test_kfac_has_the_factors_whatever_the_number_of_samples():
    """Of `r = √2 (W x − W x')` and ∇²head = I/b the output-gradients' moment is 4 I: 4 views and draws of 2/b each."""
    problem = problems.problem(SquaredEuclid(), "fisher", module=problems.Linear(), image=3)
    second = np.mean(
        np.sum(standardised(problem) ** 2, axis=2)
    )  # over examples and views, the positions of the one layer
    state = jax.jit(KFAC(samples=60).fit)(problem, jax.random.key(0))
    error = (2 / (8 * 3 * 60)) ** 0.5
    np.testing.assert_allclose(float(state.eigenvalues["linear"].sum()), 4 * 3 * second, rtol=4 * error)
