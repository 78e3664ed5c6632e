"""Form the measurement and the problem that settings describe."""

from influence_ssl_jax.encoder import Encoder, Output
from influence_ssl_jax.losses import Measurement
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.runs.settings import AnyPerturbation, CurvatureSet, views
from influence_ssl_jax.train.settings import Precision
from influence_ssl_jax.types import Batch


def measurement(
    encoder: Encoder,
    output: Output,
    perturbation: AnyPerturbation,
    loss: Measurement,
    precision: Precision = "float32",
) -> Objective:
    """Return what is scored: the distance of two views at one output of the network, whose layers compute in `precision`.

    Raises:
        InfluenceError: The network has no such output, or cannot be told to compute in another type.
    """
    chosen = encoder.at(output)
    if precision != "float32":
        chosen = chosen.computing_in(precision)
    return Objective(chosen.network, views(perturbation), loss)


def problem(encoder: Encoder, output: Output, measured: Objective, curvature: CurvatureSet, batches: Batch) -> Problem:
    """Return the matrix that is inverted, over a resident set of images.

    Its parameters are those that the measurement or the loss reads. A pretraining loss reads the heads too: there the
    gradient of a score at the encoder is zero, but the curvature is not.
    """
    objective, params = measured, encoder.at(output).params
    if curvature.objective == "pretraining":
        objective, read = encoder.pretraining()
        params = {**params, **read}
    return Problem(params, encoder.frozen, batches, objective, curvature.kind, curvature.samples)
