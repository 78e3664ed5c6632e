"""Draws of the sampled Fisher, by their covariance and independence; what a measurement gives beside its gradients."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import Augmented, Transform
from influence_ssl_jax.curvature.contributions import measure, output_samples
from influence_ssl_jax.losses import CosineDistance, Loss
from influence_ssl_jax.types import Batch
from tests import problems
from tests.losses.cases import BATCH, LOSSES, name
from tests.losses.test_curvature import head_hessian, outputs_of

SAMPLES = 3000


def batch_of(keys) -> Batch:
    """A batch with these keys; its images are not read."""
    size = len(keys)
    return Batch(jnp.zeros((size, 1, 1, 1)), keys, jnp.arange(size), None)


@dataclasses.dataclass(frozen=True)
class Bare(Loss):
    """A loss whose draws are the standard normal numbers themselves."""

    separable: ClassVar[bool] = False

    def outputs(self, embeddings):
        return embeddings.online[0]

    def head(self, outputs):
        return jnp.sum(outputs**2) / 2

    def head_square_root(self, outputs, noise):
        del outputs
        return noise


class Separable(Bare):
    """The same, with an example's draws from its own key."""

    separable: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Noise(Transform):
    """Standard normal numbers in place of the image."""

    def __call__(self, key, image):
        return jax.random.normal(key, (image.size,), image.dtype).reshape(image.shape)


draws = jax.jit(output_samples, static_argnums=(0, 3))


def numbers(loss, keys, samples=3, width=4):
    """What a batch with these keys draws, [samples, examples, width]."""
    return np.asarray(draws(loss, np.zeros((len(keys), width)), batch_of(keys), samples))


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_draws_have_the_hessian_of_the_head_as_their_covariance(loss):
    """`E[w wᵀ] = ∇²head`, the blocks between examples included, from its formula: within five standard errors."""
    outputs, _ = outputs_of(loss)
    keys = jax.random.split(jax.random.key(7), BATCH)
    drawn = np.asarray(draws(loss, outputs, batch_of(keys), SAMPLES)).reshape(SAMPLES, -1)
    want = head_hessian(loss, outputs.ravel())
    # Of normal draws E‖mean(w wᵀ) − H‖² = (tr(H)² + ‖H‖²) / samples, and that of the mean is tr(H) / samples.
    error = np.linalg.norm(drawn.T @ drawn / SAMPLES - want)
    assert error <= 1.5 * ((np.trace(want) ** 2 + np.linalg.norm(want) ** 2) / SAMPLES) ** 0.5
    assert np.linalg.norm(drawn.mean(axis=0)) <= 3 * (np.trace(want) / SAMPLES) ** 0.5
    # The trace is known far better than any entry.
    total = np.mean(np.sum(drawn**2, axis=1))
    assert abs(total - np.trace(want)) <= 5 * (2 / SAMPLES) ** 0.5 * np.linalg.norm(want)


@pytest.mark.parametrize("loss", [Bare(), Separable()], ids=["coupled", "separable"])
def test_no_number_is_drawn_twice(loss):
    """Not by two samples, two examples or two batches; not by the perturbation of an example in any of its draws."""
    keys = jax.random.split(jax.random.key(3), 6)
    first, second = numbers(loss, keys[:3]), numbers(loss, keys[3:])
    drawn = np.concatenate([first.ravel(), second.ravel()])
    assert len(np.unique(drawn)) == drawn.size == 2 * 3 * 3 * 4
    noise = (GaussianNoise(sigma=1.0), Augmented((Noise(), Noise())))
    every = jax.jit(jax.vmap(lambda key, image: jnp.concatenate([views(key, image) for views in noise]), (0, None)))
    own = [keys, *(jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(keys) for k in range(3))]
    seen = np.asarray(every(jnp.concatenate(own), jnp.zeros((4, 4, 3))))
    assert not np.intersect1d(drawn, seen).size


def test_an_example_of_a_separable_loss_draws_from_its_own_key():
    keys = jax.random.split(jax.random.key(4), 4)
    whole = numbers(Separable(), keys)
    np.testing.assert_array_equal(numbers(Separable(), keys[jnp.array([2, 0])]), whole[:, [2, 0]])


def test_a_coupled_batch_draws_from_its_first_key_alone():
    keys = jax.random.split(jax.random.key(5), 8)
    whole = numbers(Bare(), keys[:4])
    np.testing.assert_array_equal(numbers(Bare(), jnp.concatenate([keys[:1], keys[5:]])), whole)
    assert not np.intersect1d(numbers(Bare(), jnp.concatenate([keys[4:5], keys[1:4]])), whole).size


def test_the_embedding_that_is_kept_is_that_of_the_clean_image():
    problem = problems.problem(CosineDistance(), module=problems.Linear(), image=3)
    batch = problems.first_batch(problem)
    measured = jax.jit(measure, static_argnums=(0, 4))(problem.objective, problem.params, problem.frozen, batch, 2)
    inputs = (np.asarray(batch.image).reshape(4, -1) - 0.4) / 0.5
    np.testing.assert_allclose(measured.embeddings, inputs @ np.asarray(problem.params["linear"]["kernel"]), rtol=1e-12)
    assert measured.values.shape == (2, 4)
    assert not np.any(measured.degenerate)
