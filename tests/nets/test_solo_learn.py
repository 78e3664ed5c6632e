"""Torch's weights in our modules compute what a plain float64 reference computes from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.solo_learn import lone_backbone, variables
from tests.nets import networks, reference

IMAGE = (8, 8, 3)
RELU, NORM = -1, None
IMAGES = np.random.default_rng(5).normal(size=(3, *IMAGE))

HEADS = {
    "simclr": (
        networks.simclr(2),
        {"projector": (16, 7, RELU, 5)},
    ),
    "byol": (
        networks.byol(2),
        {"projector": (16, 7, NORM, RELU, 5), "predictor": (5, 6, NORM, RELU, 5)},
    ),
    "barlow_twins": (
        networks.barlow_twins(2),
        {"projector": (16, 7, NORM, RELU, 7, NORM, RELU, 5)},
    ),
}


@pytest.mark.parametrize("method", HEADS)
def test_every_output_equals_the_reference(method):
    module, heads = HEADS[method]
    state = reference.random_state(2, heads, seed=1)
    weights = trees.astype(variables(state, module, IMAGE), jnp.float64)
    outputs = module.apply(weights, jnp.asarray(IMAGES), train=False)

    representation = reference.resnet18(state, IMAGES)
    projection = reference.head(state, "projector", representation)
    np.testing.assert_allclose(outputs.representation, representation, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(outputs.projection, projection, rtol=1e-10, atol=1e-12)
    if module.predictor is None:
        assert outputs.prediction is None
    else:
        prediction = reference.head(state, "predictor", projection)
        np.testing.assert_allclose(outputs.prediction, prediction, rtol=1e-10, atol=1e-12)


def test_each_method_alone_needs_only_its_parts():
    module, heads = HEADS["byol"]
    state = reference.random_state(2, heads, seed=1)
    weights = trees.astype(variables(state, module, IMAGE), jnp.float64)
    outputs = module.apply(weights, jnp.asarray(IMAGES), train=False)
    parts = {
        "encode": (["backbone"], outputs.representation),
        "project": (["backbone", "projector"], outputs.projection),
        "predict": (["backbone", "projector", "predictor"], outputs.prediction),
    }
    frozen = {"batch_stats": weights["batch_stats"]}
    for method, (names, expected) in parts.items():
        params = {name: weights["params"][name] for name in names}
        embedded = Network(module, method=method)(params, frozen, jnp.asarray(IMAGES))
        np.testing.assert_allclose(embedded, expected, rtol=1e-12, atol=1e-14)


def test_lone_backbone_and_foreign_entries():
    state = reference.random_state(2, {}, seed=2)
    torchvision = {name.removeprefix("backbone."): array for name, array in state.items()}
    torchvision |= {"fc.weight": np.zeros((10, 16)), "fc.bias": np.zeros(10)}
    checkpoint = state | {"classifier.weight": np.zeros((10, 16)), "momentum_backbone.conv1.weight": np.zeros(3)}
    module = networks.simclr(2)
    for given in (lone_backbone(torchvision), checkpoint):
        weights = trees.astype(variables(given, module, IMAGE, method="encode"), jnp.float64)
        assert set(weights["params"]) == {"backbone"}
        embedded = module.apply(weights, jnp.asarray(IMAGES), train=False, method="encode")
        np.testing.assert_allclose(embedded, reference.resnet18(state, IMAGES), rtol=1e-10, atol=1e-12)


def test_weights_of_another_architecture_are_refused():
    state = reference.random_state(2, {"projector": (16, 7, RELU, 5)}, seed=3)
    with pytest.raises(ValueError, match=r"backbone/bn1/mean: expected \(4,\), got \(2,\).*; …. Choose the widths"):
        variables(state, networks.simclr(4), IMAGE, method="encode")
    with pytest.raises(ValueError, match=r"projector/bn0/mean: expected \(7,\), got nothing"):
        variables(state, networks.byol(2), IMAGE)
    del state["backbone.bn1.running_var"]
    with pytest.raises(ValueError, match=r"in 1 arrays: batch_stats/backbone/bn1/var: expected \(2,\), got nothing"):
        variables(state, networks.simclr(2), IMAGE, method="encode")


def test_scored_architecture_has_the_published_size():
    """torchvision's ResNet-18 with the CIFAR stem and ten classes has 11,173,962 parameters, fc(512, 10) among them."""
    module = networks.byol(64, 2048, 256)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)["params"]
    assert trees.size(shapes["backbone"]) == 11_173_962 - (512 * 10 + 10)
    assert trees.size(shapes["projector"]) == (512 + 1) * 2048 + 2 * 2048 + (2048 + 1) * 256
    trained = {name: array for name, array in reference.random_state(64, {}, seed=0).items() if "running" not in name}
    counted = sum(array.size for name, array in trained.items() if not name.endswith("num_batches_tracked"))
    assert counted == trees.size(shapes["backbone"])
