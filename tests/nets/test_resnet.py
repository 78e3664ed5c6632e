"""Training mode, compute dtypes and image sizes of the ResNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.checkpoints import FORMATS, Choices
from influence_ssl_jax.nets.resnet import ResNet18
from tests.checkpoints.memory import file_of
from tests.nets import reference

STATE = reference.random_state(2, {}, seed=4)
IMAGES = np.random.default_rng(6).normal(size=(3, 8, 8, 3))


@pytest.fixture
def weights():
    choices = Choices(size=8, mean=(0.0,), std=(1.0,))
    held = FORMATS["resnet_cifar"].read(file_of({"state_dict": STATE}), choices).encoder
    return {"params": held.params, **held.frozen}


def test_training_normalises_by_the_batch_and_updates_the_running_statistics(weights):
    exact = trees.astype(weights, jnp.float64)
    training = jax.jit(functools.partial(ResNet18(2).apply, train=True, mutable=["batch_stats"]))
    _, updated = training(exact, jnp.asarray(IMAGES))
    stem = reference.convolution(IMAGES.transpose(0, 3, 1, 2), STATE["backbone.conv1.weight"], 1, 1)
    old = exact["batch_stats"]["bn1"]
    new = updated["batch_stats"]["bn1"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * stem.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * stem.var((0, 2, 3)), rtol=1e-6, atol=1e-7)


def test_bfloat16_computes_near_float32_and_returns_float32(weights):
    images = jnp.asarray(IMAGES, jnp.float32)
    full, half = (
        jax.jit(functools.partial(ResNet18(2, d).apply, train=False))(weights, images) for d in (None, jnp.bfloat16)
    )
    assert full.dtype == half.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(full - half) < 0.05 * jnp.linalg.norm(full)


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_any_image_size(weights, size):
    images = np.random.default_rng(7).normal(size=(2, *size, 3))
    exact = trees.astype(weights, jnp.float64)
    embedded = ResNet18(2).apply(exact, jnp.asarray(images), train=False)
    np.testing.assert_allclose(embedded, reference.resnet18(STATE, images), rtol=1e-10, atol=1e-12)


def test_initialisation_is_torchs():
    """Kaiming fan-out: variance 2 / (out · window) of every convolution; BatchNorm starts as the identity."""
    params = jax.jit(ResNet18(8).init, static_argnames="train")(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    kernel = params["params"]["layer4_1"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 64, 64)
    assert kernel.var() == pytest.approx(2 / (64 * 9), rel=0.03)
    assert (params["params"]["layer4_1"]["bn2"]["scale"] == 1).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
