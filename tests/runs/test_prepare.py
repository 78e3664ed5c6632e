"""Which parameters, which network and which loss a score takes."""

import jax
import jax.numpy as jnp
import pytest

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.losses import BYOL, CosineDistance, SimCLR
from influence_ssl_jax.runs.prepare import form_measurement, form_problem
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.train import Trained, tiny
from influence_ssl_jax.types import Batch

PARTS = {"backbone": {"w": jnp.ones(2)}, "projector": {"w": jnp.ones(3)}, "predictor": {"w": jnp.ones(4)}}
BATCHES = Batch(jnp.zeros((1, 2, 8, 8, 3)), jax.random.split(jax.random.key(0), (1, 2)), jnp.zeros((1, 2), int))


def trained(loss):
    return Trained(tiny(loss), (8, 8, 3), PARTS, {}).encoder()


def measured(loss, output):
    return form_measurement(trained(loss), output, GaussianNoise(), CosineDistance())


@pytest.mark.parametrize(
    ("output", "method", "parts"),
    [
        ("encoder", "encode", {"backbone"}),
        ("projector", "project", {"backbone", "projector"}),
        ("predictor", "predict", {"backbone", "projector", "predictor"}),
    ],
)
def test_an_output_has_its_method_and_its_parameters(output, method, parts):
    objective = measured(BYOL(), output)
    assert objective.network.method == method
    assert objective.loss == CosineDistance()
    problem = form_problem(trained(BYOL()), output, objective, CurvatureSet(kind="fisher", samples=3), BATCHES)
    assert problem.params.keys() == parts
    assert problem.objective == objective
    assert (problem.curvature, problem.samples) == ("fisher", 3)


@pytest.mark.parametrize(("loss", "parts"), [(SimCLR(), {"backbone", "projector"}), (BYOL(), PARTS.keys())])
def test_curvature_of_the_pretraining_loss_has_the_parameters_that_it_reads(loss, parts):
    pretraining = CurvatureSet("pretraining")
    problem = form_problem(trained(loss), "encoder", measured(loss, "encoder"), pretraining, BATCHES)
    assert problem.params.keys() == parts
    assert problem.objective.loss == loss


def test_a_network_without_predictor_has_no_prediction():
    with pytest.raises(InfluenceError, match="SimCLR has no predictor; use encoder or projector"):
        measured(SimCLR(), "predictor")
