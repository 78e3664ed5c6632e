"""Every depth of a network is a method; what gives no embedding is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.nets.heads import Classifier
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.network import Network
from tests.nets import networks


def test_predict_without_predictor_is_refused():
    module = networks.simclr(1, 2, 2)
    with pytest.raises(ValueError, match="no predictor"):
        jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x, train=False, method="predict"), jnp.zeros((1, 4, 4, 3))
        )


def test_supervised_baseline_projects_to_logits():
    module = networks.supervised(1)
    assert module.projector == Classifier(10)
    logits = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False), jnp.zeros((2, 4, 4, 3)))[0]
    assert logits.projection.shape == (2, 10)


def test_linear_network_is_a_matrix():
    images = np.random.default_rng(0).normal(size=(4, 2, 3, 1))
    matrix = np.random.default_rng(1).normal(size=(6, 5))
    network = Network(Linear(5), mean=(0.5,), std=(2.0,))
    embedded = network({"dense": {"kernel": jnp.asarray(matrix)}}, {}, jnp.asarray(images))
    np.testing.assert_allclose(embedded, (images.reshape(4, 6) - 0.5) / 2 @ matrix, rtol=1e-12)


class Plain(nn.Module):
    """A network that knows nothing of training."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(2)(images.reshape(images.shape[0], -1))


def test_arguments_that_a_network_does_not_take_are_named():
    images = jnp.ones((1, 2, 2, 1))
    params = Plain().init(jax.random.key(0), images)["params"]
    with pytest.raises(StructureError, match=r"Plain\.__call__ takes no argument 'train', but self, images\. Pass"):
        Network(Plain())(params, {}, images)
    assert Network(Plain(), arguments=())(params, {}, images).shape == (1, 2)


def test_network_refuses_what_is_no_embedding():
    whole = Network(networks.simclr(1, 2, 2))
    variables = jax.eval_shape(lambda x: whole.module.init(jax.random.key(0), x, train=False), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(StructureError, match="must return one embedding per image"):
        jax.eval_shape(whole, variables["params"], {"batch_stats": variables["batch_stats"]}, jnp.zeros((1, 4, 4, 3)))
