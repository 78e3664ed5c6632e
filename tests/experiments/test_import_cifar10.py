"""The experiment, tiny: an accuracy of the imported encoder, and the stem that changes the embeddings."""

import jax
import numpy as np

from experiments.import_cifar10 import ENCODER, Config, run, with_stem
from influence_ssl_jax.encoder import Encoder


def test_the_tiny_experiment_runs():
    assert 0.1 < run(Config(images="digits", bank=60, queries=30)) <= 1


def test_another_stem_is_another_network():
    encoder = Encoder.load(ENCODER)
    images = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    ours, same, other = (
        jax.jit(each.network)(encoder.params, encoder.frozen, images)
        for each in (encoder, with_stem(encoder, "solo_learn"), with_stem(encoder, "cifar"))
    )
    np.testing.assert_array_equal(ours, same)
    assert np.linalg.norm(ours - other) > 0.01 * np.linalg.norm(ours)
