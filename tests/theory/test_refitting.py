"""Leaving out by actual refitting, on the pipeline's own objective: what its scores say of it, and the theory's factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.ihvp import Exact
from influence_ssl_jax.losses import SquaredEuclid
from influence_ssl_jax.theory import leave_out, leverage
from tests.theory.bridge import CONJUGATE, DAMPING, EXAMPLES, OUTPUTS, SIDE, moved_to, problem, scores, views

ANCHOR = np.random.default_rng(2).normal(size=(SIDE**2, OUTPUTS))


@jax.jit
def losses(problem, kernel):
    """The objective of every example alone."""

    def alone(example):
        return problem.objective(
            {"dense": {"kernel": kernel}}, problem.frozen, jax.tree.map(lambda x: x[None], example)
        )

    return jax.vmap(alone)(jax.tree.map(lambda leaf: leaf[0], problem.batches))


@jax.jit
def fitted(problem, kept, damping=DAMPING):
    """Minimiser over the kept examples of `(1/n) Σ l_i + (λ/2)‖W − W₀‖²`: a Newton step, and one more for the rounding."""

    def objective(flat):
        kernel = flat.reshape(ANCHOR.shape)
        return kept @ losses(problem, kernel) / EXAMPLES + damping / 2 * jnp.sum((kernel - ANCHOR) ** 2)

    flat = jnp.asarray(ANCHOR).ravel()
    for _ in range(2):
        flat = flat - jnp.linalg.solve(jax.hessian(objective)(flat), jax.grad(objective)(flat))
    return flat.reshape(ANCHOR.shape)


@jax.jit
def without_each(problem):
    """The minimisers with one example left out."""
    return jax.lax.map(lambda kept: fitted(problem, kept), 1 - jnp.eye(EXAMPLES))


@pytest.fixture(scope="module")
def anchored():
    """The problem at its optimum, and the perturbations."""
    start = problem(SquaredEuclid())
    clean, perturbed = views(start)
    return moved_to(start, fitted(start, jnp.ones(EXAMPLES))), perturbed - clean


def test_the_optimum_is_the_closed_form(anchored):
    at_optimum, deltas = anchored
    optimum = leave_out.optimum(jnp.asarray(ANCHOR.T), deltas, 1.0, DAMPING)
    np.testing.assert_allclose(at_optimum.params["dense"]["kernel"].T, optimum, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", [Exact(), CONJUGATE], ids=str)
def test_a_score_and_a_loss_predict_the_refit_without_the_example(anchored, backend):
    """`h = score/(2nl)` is all that the factor between influence and refitting takes."""
    at_optimum, deltas = anchored
    before = losses(at_optimum, at_optimum.params["dense"]["kernel"])
    score = scores(at_optimum, backend)
    leverages = score / (2 * EXAMPLES * before)
    np.testing.assert_allclose(leverages, leverage.leverages(deltas, 1.0, DAMPING), rtol=1e-9)
    np.testing.assert_allclose(score / EXAMPLES, leave_out.predicted_loss_change(before, leverages), rtol=1e-12)
    for i, refitted in enumerate(without_each(at_optimum)):
        grown = losses(at_optimum, refitted)[i] - before[i]
        np.testing.assert_allclose(leave_out.exact_loss_change(before, leverages)[i], grown, rtol=1e-9)
        np.testing.assert_allclose(score[i] / EXAMPLES * leave_out.underestimate(leverages)[i], grown, rtol=1e-9)


def test_a_step_of_the_parameters_is_the_influence_prediction_over_what_is_left(anchored):
    at_optimum, deltas = anchored
    optimum = at_optimum.params["dense"]["kernel"].T
    steps = leave_out.exact_steps(optimum, deltas, 1.0, DAMPING)
    for i, refitted in enumerate(without_each(at_optimum)):
        np.testing.assert_allclose(optimum + steps[i], refitted.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("group", [(0, 1), (1, 2, 4), (0, 1, 2, 3)])
def test_a_group_left_out_moves_its_outputs_by_its_hat_matrix(anchored, group):
    at_optimum, deltas = anchored
    chosen = jnp.asarray(group)
    refitted = fitted(at_optimum, jnp.ones(EXAMPLES).at[chosen].set(0.0))
    gram = leverage.gram(deltas, 1.0, DAMPING)[jnp.ix_(chosen, chosen)]
    outputs = at_optimum.params["dense"]["kernel"].T @ deltas[chosen].T
    moved = leave_out.group_outputs(outputs, gram)
    np.testing.assert_allclose(moved, refitted.T @ deltas[chosen].T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(moved**2, axis=0), losses(at_optimum, refitted)[chosen], rtol=1e-9)


def test_weights_of_one_over_the_rest_are_another_damping(anchored):
    at_optimum, _ = anchored
    rest = jnp.ones(EXAMPLES).at[0].set(0.0)
    retrained = fitted(at_optimum, rest * EXAMPLES / (EXAMPLES - 1))
    damping = leave_out.renormalised_damping(DAMPING, EXAMPLES)
    np.testing.assert_allclose(fitted(at_optimum, rest, damping), retrained, rtol=1e-9, atol=1e-12)
