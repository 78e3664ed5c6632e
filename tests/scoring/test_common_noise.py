"""The same draws for every example, wherever an example is drawn: scores, comparisons of backends, certificates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from influence_ssl_jax import randomness
from influence_ssl_jax.evaluation.calibration import Calibration
from influence_ssl_jax.evaluation.certificate import Audit, certify
from influence_ssl_jax.evaluation.comparison import Examples, compare_backends
from influence_ssl_jax.evaluation.exact import Truth
from influence_ssl_jax.ihvp import Damping, Identity
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.scores import Scorer, Scoring, assign_keys
from tests import problems

OWN = Scoring(Damping(absolute=0.1), draws=2, batch_size=4, seed=9)
COMMON = dataclasses.replace(OWN, noise="common")


@functools.cache
def given():
    """A problem, and a batch whose examples 0 and 2 are the same image under keys of their own."""
    problem = problems.problem(CosineDistance(), module=problems.Linear(), image=3)
    batch = problems.first_batch(problem)
    return problem, dataclasses.replace(batch, image=batch.image.at[2].set(batch.image[0]))


def test_scores():
    problem, batch = given()
    own, common = (Scorer.fit(problem, Identity(probes=1), settings)(batch) for settings in (OWN, COMMON))
    assert abs(float(own.score[0] - own.score[2])) > 1e-3 * float(own.score[0])
    np.testing.assert_allclose(common.score[0], common.score[2], rtol=1e-12)
    weights, losses = np.asarray(problem.params["linear"]["kernel"]), []
    for draw in range(2):
        key = jax.random.fold_in(randomness.branch(randomness.root(9, Stream.COMMON_NOISE), Stream.PERTURBATIONS), draw)
        noisy = batch.image + 0.3 * np.asarray(problems.hashed_noise(key, 18), float).reshape(1, 3, 3, 2)
        z, other = (((np.asarray(pixels).reshape(4, -1) - 0.4) / 0.5) @ weights for pixels in (batch.image, noisy))
        cosine = np.sum(z * other, axis=1) / np.linalg.norm(z, axis=1) / np.linalg.norm(other, axis=1)
        losses.append(1 - cosine)
    np.testing.assert_allclose(common.alignment_loss, np.mean(losses, axis=0), rtol=1e-9)


def test_comparisons_of_backends():
    problem, batch = given()
    truth = Truth(1.0, 0.1, np.ones(4), np.ones(4))

    def scores(settings):
        examples = Examples(problem.objective, [batch], np.ones(4, bool), settings)
        (row,) = compare_backends([Identity(probes=1)], problem, examples, [truth], Calibration())
        return row.scores

    own, common = scores(OWN), scores(COMMON)
    assert abs(own[0] - own[2]) > 1e-3 * own[0]
    np.testing.assert_allclose(common[0], common[2], rtol=1e-12)


def test_certificates():
    _, batch = given()
    assert assign_keys(batch, OWN) is batch
    common = assign_keys(batch, COMMON)
    one = jax.random.key_data(randomness.root(9, Stream.COMMON_NOISE))
    np.testing.assert_array_equal(jax.random.key_data(common.key), [one] * 4)
    np.testing.assert_array_equal(common.image, batch.image)
    problem, damping, key = given()[0], jnp.asarray(0.1), jax.random.key(0)
    own, common = (
        certify(problem, problem.objective, batch, damping, key, settings, Audit(width=1e-3))
        for settings in (OWN, COMMON)
    )
    assert own.lower[0] > own.upper[2] or own.upper[0] < own.lower[2]
    np.testing.assert_allclose(common.lower[0], common.lower[2], rtol=1e-9)
    np.testing.assert_allclose(common.upper[0], common.upper[2], rtol=1e-9)
