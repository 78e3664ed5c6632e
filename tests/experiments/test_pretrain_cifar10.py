"""The experiment, tiny: it trains, and writes a network that can be loaded and asked for its objective."""

import jax
import numpy as np
import pytest

from experiments.pretrain_cifar10 import HERE, RUNS, Config, run
from influence_ssl_jax import trees
from influence_ssl_jax.data import Digits, ToInput, epoch
from influence_ssl_jax.train import load


@pytest.mark.slow
def test_the_tiny_experiment_runs(tmp_path):
    config = Config.tiny(tmp_path)
    trained = run(config)
    loaded = load(tmp_path / "encoders" / "simclr_w4_digits")
    assert loaded.settings == config.settings
    assert [row["epoch"] for row in loaded.history] == [0, 1]
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2**-11, atol=2**-25),
        loaded.params,
        trained.params,
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.frozen, trained.frozen)


@pytest.mark.parametrize("method", RUNS)
def test_committed_encoders_are_whole(method):
    trained = load(HERE / "encoders" / f"{method}_w16_cifar10")
    assert trained.settings == RUNS[method]
    # Convolutions (stem, four stages) and the two parameters per channel of 20 BatchNorms.
    convolutions = 432 + 4 * 2304 + (1 + 4 + 16) * (4608 + 3 * 9216 + 512)
    assert trees.size(trained.params["backbone"]) == convolutions + 2 * (5 * 16 + (1 + 2 + 4) * 5 * 32)
    assert (HERE / "encoders" / f"{method}_w16_cifar10.npz").stat().st_size < 3e6
    untrained, last = trained.history[0], trained.history[-1]
    assert last["knn"] > untrained["knn"]
    assert last["epoch"] == trained.settings.epochs
    held = jax.tree_util.tree_leaves_with_path((trained.params, trained.frozen))
    assert all(np.isfinite(leaf).all() for _, leaf in held)
    assert all((leaf > 0).all() for path, leaf in held if path[-1].key == "var")
    images = next(epoch(Digits(32, digits=4).open(), ToInput(), 2, 0, 1)).batch
    loss = jax.eval_shape(trained.settings.objective(), trained.params, trained.frozen, images)  # reads every entry
    assert (loss.shape, loss.dtype) == ((), np.float32)
