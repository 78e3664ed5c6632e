"""Settings refuse what cannot run; recipes say what the papers say."""

import dataclasses
import math

import jax
import pytest

from influence_ssl_jax import configuration, trees
from influence_ssl_jax.losses import BYOL, TRAINING_LOSSES, BarlowTwins, SimSiam, Supervised, VICReg
from influence_ssl_jax.train import RECIPES, Architecture, Lars, Pretrain, Sgd, tiny
from influence_ssl_jax.train.state import initial


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "at least 1 epoch"),
        ({"batch_size": 1}, "at least 2"),
        ({"views": "unknown"}, "known are"),
    ],
)
def test_what_cannot_run_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Pretrain(**changes)


@pytest.mark.parametrize(("epochs", "shortened"), [(1, 0), (3, 1), (10, 1), (11, 10)])
def test_a_warm_up_that_would_not_end_is_shortened_and_said_to_be(epochs, shortened, caplog):
    settings = Pretrain(epochs=epochs)
    assert settings.optimiser.warmup_epochs == shortened
    assert ("--training.epochs" in caplog.text) == (shortened < 10)
    assert configuration.describe(settings)["optimiser"]["warmup_epochs"] == shortened
    assert float(settings.schedule(5)(5 * epochs)) == pytest.approx(0, abs=1e-9)
    caplog.clear()
    assert configuration.restore(configuration.describe(settings), [Pretrain]) == settings
    assert caplog.text == ""


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_hashable_described_and_restored(name):
    settings = RECIPES[name]
    assert hash(settings) == hash(dataclasses.replace(settings))
    assert configuration.restore(configuration.describe(settings), [Pretrain]) == settings
    objective = settings.objective()
    assert (objective.target is not None) == isinstance(settings.loss, BYOL | SimSiam)


@pytest.mark.parametrize(
    ("name", "hidden", "output", "rate", "epochs", "batch", "views"),
    [
        ("table2_simclr", 2048, 256, 0.4, 1000, 256, "table1"),
        ("table2_byol", 4096, 256, 1.0, 1000, 256, "table1"),
        ("table2_barlow_twins", 2048, 2048, 0.3, 1000, 256, "table1"),
        ("table3_simclr", 2048, 256, 0.4, 250, 512, "table1"),
        ("table3_byol", 2048, 256, 0.35, 250, 512, "table1"),
        ("table3_barlow_twins", 2048, 512, 0.35, 250, 512, "table1"),
        ("solo_learn_simclr", 2048, 256, 0.4, 1000, 256, "simclr"),
        ("solo_learn_byol", 4096, 256, 1.0, 1000, 256, "byol"),
        ("solo_learn_barlow_twins", 2048, 2048, 0.3, 1000, 256, "barlow_twins"),
        ("solo_learn_vicreg", 2048, 2048, 0.3, 1000, 256, "vicreg"),
    ],
)
def test_the_published_numbers(name, hidden, output, rate, epochs, batch, views):
    settings = RECIPES[name]
    shape, optimiser = settings.architecture, settings.optimiser
    assert (shape.width, shape.hidden, shape.output) == (64, hidden, output)
    assert (settings.epochs, settings.batch_size, settings.views) == (epochs, batch, views)
    decay = 1e-5 if isinstance(settings.loss, BYOL) else 1e-4
    scaled = not name.startswith("table3")
    assert optimiser == Lars(rate, 0.02, decay, 0.9, warmup_epochs=10, warmup_start=0.003, scale_by_batch=scaled)
    assert float(settings.schedule(5)(50)) == pytest.approx(rate)  # what is printed is what is trained with
    assert settings.module().backbone.stem == "solo_learn"


def test_rates_of_solo_learn_follow_the_batch():
    """solo/args/pretrain.py: lr · batch_size / 256; the start of the warm-up is not scaled."""
    settings = dataclasses.replace(RECIPES["solo_learn_barlow_twins"], batch_size=64)
    rate = settings.schedule(5)
    assert float(rate(50)) == pytest.approx(0.075)
    assert float(rate(0)) == pytest.approx(0.003)


def test_faces_have_the_published_method_and_epochs_and_imagenets_statistics():
    settings = RECIPES["fairface_byol"]
    assert (settings.epochs, settings.views, type(settings.loss)) == (200, "table1", BYOL)
    assert settings.network("encode").mean == (0.485, 0.456, 0.406)


def test_statistics_are_given_together_or_are_those_of_cifar10():
    assert Pretrain().network("encode").std == (0.2470, 0.2435, 0.2616)
    given = Architecture(mean=(0.5,), std=(0.2,))
    assert Pretrain(architecture=given).network("encode").mean == (0.5,)
    with pytest.raises(ValueError, match=r"together or not at all, got mean=\(0.5,\) and std=None"):
        Architecture(mean=(0.5,))


def test_settings_of_files_without_the_newer_fields_are_restored_as_they_were_trained():
    described = configuration.describe(Pretrain(architecture=Architecture(mean=(0.5,), std=(0.2,))))
    del described["optimiser"]["scale_by_batch"], described["architecture"]["stem"]
    restored = configuration.restore(described, [Pretrain])
    assert not restored.optimiser.scale_by_batch
    assert restored.architecture.stem == "cifar"


def test_barlow_twins_has_the_published_weights():
    assert RECIPES["table2_barlow_twins"].loss == BarlowTwins(off_diagonal=0.0051, scale=0.1)


def test_simsiam_and_vicreg_have_the_published_settings():
    settings = RECIPES["solo_learn_simsiam"]
    shape = settings.architecture
    assert (shape.width, shape.hidden, shape.output, shape.hidden_layers, shape.predictor_hidden) == (
        64,
        2048,
        2048,
        2,
        512,
    )
    assert (settings.epochs, settings.batch_size, settings.views) == (1000, 256, "simsiam")
    assert settings.optimiser == Sgd(0.5, 1e-5, 0.9, warmup_epochs=10, warmup_start=0.003, scale_by_batch=True)
    assert RECIPES["solo_learn_vicreg"].loss == VICReg(25.0, 25.0, 1.0, margin=1.0, epsilon=1e-4)


def test_parameters_of_the_scored_networks():
    """Backbone as torchvision's ResNet-18 with CIFAR stem; heads counted by hand: weights, biases, BatchNorm pairs."""
    heads = {
        "solo_learn_simclr": 512 * 2048 + 2048 + 2048 * 256 + 256,
        "solo_learn_byol": (512 * 4096 + 4096 + 2 * 4096 + 4096 * 256 + 256)
        + (256 * 4096 + 4096 + 2 * 4096 + 4096 * 256 + 256),
        "solo_learn_barlow_twins": (512 * 2048 + 3 * 2048) + (2048 * 2048 + 3 * 2048) + 2048 * 2048 + 2048,
        "solo_learn_simsiam": (512 * 2048 + 2 * 2048 + 2048 * 2048 + 2 * 2048 + 2048 * 2048)
        + (2048 * 512 + 3 * 512 + 512 * 2048 + 2048),
        "solo_learn_vicreg": (512 * 2048 + 3 * 2048) + (2048 * 2048 + 3 * 2048) + 2048 * 2048 + 2048,
    }
    for name, count in heads.items():
        shapes = jax.eval_shape(lambda settings=RECIPES[name]: initial(settings, (32, 32, 3)).params)
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 11_168_832 + count
        assert trees.size(shapes["backbone"]) == 11_168_832


def test_tiny_runs_are_tiny():
    for loss in TRAINING_LOSSES:
        settings = tiny(loss())
        assert settings.loss == loss()
        shapes = jax.eval_shape(lambda settings=settings: initial(settings, (8, 8, 3)).params)
        assert trees.size(shapes) < 60_000
        assert isinstance(settings.loss, Supervised) == (settings.views == "supervised")
