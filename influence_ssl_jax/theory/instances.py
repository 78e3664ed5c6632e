"""Random instances for the checks: encoders, perturbations and damping over many orders of magnitude."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.theory.draw import Draw


class Linear(NamedTuple):
    """A linear encoder and one perturbed input."""

    weight: Float[Array, "d p"]
    delta: Float[Array, " p"]
    x: Float[Array, " p"]
    eps: Float[Array, ""]
    damping: Float[Array, ""]


class Population(NamedTuple):
    """A linear encoder and n perturbations, one per row."""

    weight: Float[Array, "d p"]
    deltas: Float[Array, "n p"]
    eps: Float[Array, ""]
    damping: Float[Array, ""]


class TwoLayer(NamedTuple):
    """A two-layer linear encoder, an input, its target and a perturbation."""

    first: Float[Array, "h p"]
    second: Float[Array, "d h"]
    x: Float[Array, " p"]
    y: Float[Array, " d"]
    delta: Float[Array, " p"]
    eps: Float[Array, ""]
    damping: Float[Array, ""]


def unit(draw: Draw, size: int) -> Float[Array, " size"]:
    """A uniform direction."""
    vector = draw.normal(size)
    return vector / jnp.linalg.norm(vector)


def orthogonal(draw: Draw, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """A random isometry: orthonormal columns, `rows ≥ columns`."""
    return jnp.linalg.qr(draw.normal(rows, columns))[0]


def linear(draw: Draw, outputs: int, inputs: int) -> Linear:
    """Entries of W around 1e-3 … 1e3, ‖δ‖ in 1e-2 … 10, ε in 1e-3 … 10, λ in 1e-4 … 1e2, all log-uniform."""
    return Linear(
        weight=draw.log_uniform(1e-3, 1e3) * draw.normal(outputs, inputs),
        delta=draw.log_uniform(1e-2, 10.0) * unit(draw, inputs),
        x=draw.normal(inputs),
        eps=draw.log_uniform(1e-3, 10.0),
        damping=draw.log_uniform(1e-4, 1e2),
    )


def population(draw: Draw, examples: int, outputs: int, inputs: int) -> Population:
    """Normal W and δ_i, ε in 0.1 … 3, λ in 1e-3 … 10."""
    return Population(
        weight=draw.normal(outputs, inputs),
        deltas=draw.normal(examples, inputs),
        eps=draw.log_uniform(0.1, 3.0),
        damping=draw.log_uniform(1e-3, 10.0),
    )


def two_layer(draw: Draw, outputs: int, hidden: int, inputs: int) -> TwoLayer:
    """Normal layers, inputs and targets, unit δ, ε in 0.1 … 3, λ in 1e-2 … 10."""
    return TwoLayer(
        first=draw.normal(hidden, inputs),
        second=draw.normal(outputs, hidden),
        x=draw.normal(inputs),
        y=draw.normal(outputs),
        delta=unit(draw, inputs),
        eps=draw.log_uniform(0.1, 3.0),
        damping=draw.log_uniform(1e-2, 10.0),
    )
