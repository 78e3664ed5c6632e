"""From an encoder and the choices of a score to what is measured and which matrix is inverted."""

from influence_ssl_jax.commands.scoring_settings import AnyMeasurement, AnyPerturbation, CurvatureSet, Output, views
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.train.export import Trained
from influence_ssl_jax.train.settings import Depth, Precision
from influence_ssl_jax.types import Batch, Params

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

    Raises:
        InfluenceError: The pretraining loss is taken at another depth than the measurement.
    """
    objective = measured
    if curvature.objective == "pretraining":
        objective = encoder.settings.objective()
        if objective.network.method != measured.network.method:
            depth = next(name for name, method in METHODS.items() if method == objective.network.method)
            raise InfluenceError(
                f"{type(encoder.settings.loss).__name__} was trained at the {depth}: its curvature has other "
                f"parameters than a score at the {output}. Score with --output {depth}, or use the other curvature."
            )
    params = params_of(encoder, output)
    return Problem(params, encoder.frozen, batches, objective, curvature.kind, curvature.samples)


def params_of(encoder: Trained, output: Output) -> Params:
    """The parameters that the output depends on; the others have no gradient."""
    return {part: encoder.params[part] for part in PARTS[output]}
