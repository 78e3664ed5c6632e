"""Every network of the registry is built again from its description."""

import json

import jax
import numpy as np
import pytest

from influence_ssl_jax.nets.architectures import ARCHITECTURES, build, describe
from influence_ssl_jax.nets.convnext import ConvNeXt
from influence_ssl_jax.nets.heads import Classifier, NormalisedProjector, Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.resnet import ResNet
from influence_ssl_jax.nets.vit import VisionTransformer

IMAGES, FEATURES = (2, 32, 32, 3), (2, 8)
NETWORKS = {
    ResNet: (ResNet(2, None, (1, 2), "bottleneck", "solo_learn"), IMAGES),
    VisionTransformer: (
        VisionTransformer(
            8, 16, 2, 2, 24, 0, "rotary", 3, "swiglu", "no_key", True, 1e-5, "mean", (1.0, 100.0), 0.1, True
        ),
        IMAGES,
    ),
    ConvNeXt: (ConvNeXt((2, 4), (1, 2), True), IMAGES),
    Linear: (Linear(3), IMAGES),
    SelfSupervised: (SelfSupervised(Linear(3), Projector(5, 4, 2, "none", None, False), Predictor(6)), IMAGES),
    Projector: (Projector(5, 4, 2, "none", None, True, False), FEATURES),
    NormalisedProjector: (NormalisedProjector(5, 4, 1), FEATURES),
    Predictor: (Predictor(6), FEATURES),
    Classifier: (Classifier(4), FEATURES),
}
"""A network of each class, with values that are not the fields' own, and the shape of its inputs."""


def shapes(module, inputs):
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), jax.ShapeDtypeStruct(inputs, np.float32)
    )
    return jax.tree.map(lambda leaf: leaf.shape, variables)


@pytest.mark.parametrize("network", ARCHITECTURES, ids=lambda each: each.__name__)
def test_a_description_builds_the_same_network(network):
    module, inputs = NETWORKS[network]
    again = build(json.loads(json.dumps(describe(module))))
    assert again == module
    assert shapes(again, inputs) == shapes(module, inputs)
