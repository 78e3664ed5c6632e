"""Form the measurement and the problem that settings describe."""

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.runs.settings import AnyMeasurement, AnyPerturbation, CurvatureSet, Output, views
from influence_ssl_jax.train.export import Trained
from influence_ssl_jax.train.settings import Depth, Precision
from influence_ssl_jax.types import Batch

METHODS: dict[Output, Depth] = {"encoder": "encode", "projector": "project", "predictor": "predict"}
PARTS: dict[Output, tuple[str, ...]] = {
    "encoder": ("backbone",),
    "projector": ("backbone", "projector"),
    "predictor": ("backbone", "projector", "predictor"),
}


def measurement(
    encoder: Trained,
    output: Output,
    perturbation: AnyPerturbation,
    loss: AnyMeasurement,
    precision: Precision = "float32",
) -> Objective:
    """What is scored: the distance of two views at one depth of the network, whose layers compute in `precision`.

    Raises:
        InfluenceError: The network has no such output.
    """
    if output == "predictor" and not encoder.settings.loss.compares_with_target:
        raise InfluenceError(
            f"A network trained by {type(encoder.settings.loss).__name__} has no predictor; use encoder or projector."
        )
    network = encoder.settings.network(METHODS[output], None if precision == "float32" else precision)
    return Objective(network, views(perturbation), loss)


def problem(encoder: Trained, output: Output, measured: Objective, curvature: CurvatureSet, batches: Batch) -> Problem:
    """The matrix that is inverted, over a resident set of images.

    Its parameters are those that the measurement or the loss reads. A pretraining loss reads the heads too: there the
    gradient of a score at the encoder is zero, but the curvature is not.
    """
    objective, parts = measured, PARTS[output]
    if curvature.objective == "pretraining":
        objective = encoder.settings.objective()
        read = next(PARTS[name] for name, method in METHODS.items() if method == objective.network.method)
        parts = tuple(dict.fromkeys((*parts, *read)))
    params = {part: encoder.params[part] for part in parts}
    return Problem(params, encoder.frozen, batches, objective, curvature.kind, curvature.samples)
