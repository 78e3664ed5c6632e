"""Architectures survive being written down, and refuse what is no architecture."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.nets.architecture import Architecture
from influence_ssl_jax.nets.heads import Classifier
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.network import Network


@pytest.mark.parametrize(
    "architecture",
    [Architecture(), Architecture(width=4, predictor_hidden=9, projector_layers=2, precision="bfloat16")],
)
def test_rebuilt_from_what_was_recorded(architecture):
    recorded = json.loads(json.dumps(dataclasses.asdict(architecture)))
    assert Architecture.from_dict(recorded) == architecture
    assert Architecture.from_dict(recorded).build() == architecture.build()
    assert hash(architecture.build()) == hash(Architecture.from_dict(recorded).build())


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"Unknown architecture settings \['depth'\]; known are \['width'"):
        Architecture.from_dict({"depth": 50})


@pytest.mark.parametrize(("setting", "value"), [("width", 0), ("predictor_hidden", -1), ("projector_layers", -1)])
def test_impossible_sizes_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be at least"):
        Architecture(**{setting: value})


def test_predict_without_predictor_is_refused():
    module = Architecture(width=1, projector_hidden=2, projector_output=2).build()
    with pytest.raises(ValueError, match="no predictor"):
        jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x, train=False, method="predict"), jnp.zeros((1, 4, 4, 3))
        )


def test_supervised_baseline_projects_to_logits():
    module = Architecture(width=1, classes=10).build()
    assert module.projector == Classifier(10)
    logits = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False), jnp.zeros((2, 4, 4, 3)))[0]
    assert logits.projection.shape == (2, 10)


def test_linear_network_is_a_matrix():
    images = np.random.default_rng(0).normal(size=(4, 2, 3, 1))
    matrix = np.random.default_rng(1).normal(size=(6, 5))
    network = Network(Linear(5), mean=(0.5,), std=(2.0,))
    embedded = network({"dense": {"kernel": jnp.asarray(matrix)}}, {}, jnp.asarray(images))
    np.testing.assert_allclose(embedded, (images.reshape(4, 6) - 0.5) / 2 @ matrix, rtol=1e-12)


def test_network_refuses_what_is_no_embedding():
    whole = Network(Architecture(width=1, projector_hidden=2, projector_output=2).build())
    variables = jax.eval_shape(lambda x: whole.module.init(jax.random.key(0), x, train=False), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="must return one embedding per image"):
        jax.eval_shape(whole, variables["params"], {"batch_stats": variables["batch_stats"]}, jnp.zeros((1, 4, 4, 3)))
