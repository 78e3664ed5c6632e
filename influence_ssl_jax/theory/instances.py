"""Draw random instances for the checks.

They are encoders, perturbations and damping over many orders of magnitude.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

_LENGTH = 320
"""Numbers in a row of the pool, more than the largest instance needs."""


class Pool(NamedTuple):
    """Random numbers for many instances, one row for each."""

    normals: Float[Array, "*draws length"]
    uniforms: Float[Array, "*draws length"]


def pool(key: Key[Array, ""], draws: int) -> Pool:
    """Draw standard normals and uniforms on [0, 1) for `draws` instances.

    They are drawn in one call: a generator inside every compiled check would take most of the compilation time.
    """
    normal_key, uniform_key = jax.random.split(key)
    return Pool(jax.random.normal(normal_key, (draws, _LENGTH)), jax.random.uniform(uniform_key, (draws, _LENGTH)))


class Draw:
    """One row of a pool, read from left to right.

    No number is used twice within an instance.
    """

    def __init__(self, row: Pool):
        self._row = row
        self._normals = 0
        self._uniforms = 0

    def normal(self, *shape: int) -> Float[Array, "*shape"]:
        """Return independent standard normals of a shape."""
        size = 1
        for length in shape:
            size *= length
        start, self._normals = self._normals, self._normals + size
        if self._normals > _LENGTH:
            raise ValueError(f"An instance needs {self._normals} normals, but a row has {_LENGTH}: use smaller shapes.")
        return self._row.normals[start : self._normals].reshape(shape)

    def log_uniform(self, low: float, high: float) -> Float[Array, ""]:
        """Return a number between `low` and `high` whose logarithm is uniform."""
        self._uniforms += 1
        return low * (high / low) ** self._row.uniforms[self._uniforms - 1]


class Linear(NamedTuple):
    """A linear encoder and one perturbed input."""

    weight: Float[Array, "d p"]
    delta: Float[Array, " p"]
    x: Float[Array, " p"]
    eps: Float[Array, ""]
    damping: Float[Array, ""]


class Population(NamedTuple):
    """A linear encoder and n perturbations, one in each row."""

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
    """Draw a uniform direction."""
    vector = draw.normal(size)
    return vector / jnp.linalg.norm(vector)


def orthogonal(draw: Draw, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Draw a random isometry: orthonormal columns, with `rows ≥ columns`."""
    return jnp.linalg.qr(draw.normal(rows, columns))[0]


def linear(draw: Draw, outputs: int, inputs: int) -> Linear:
    """Draw a linear encoder and a perturbation, over many orders of magnitude.

    Entries of W are around 1e-3 … 1e3, ‖δ‖ is in 1e-2 … 10, ε in 1e-3 … 10, λ in 1e-4 … 1e2, all log-uniform.
    """
    return Linear(
        weight=draw.log_uniform(1e-3, 1e3) * draw.normal(outputs, inputs),
        delta=draw.log_uniform(1e-2, 10.0) * unit(draw, inputs),
        x=draw.normal(inputs),
        eps=draw.log_uniform(1e-3, 10.0),
        damping=draw.log_uniform(1e-4, 1e2),
    )


def population(draw: Draw, examples: int, outputs: int, inputs: int) -> Population:
    """Draw normal W and δ_i, `ε` in `0.1 … 3`, `λ` in `1e-3 … 10`."""
    return Population(
        weight=draw.normal(outputs, inputs),
        deltas=draw.normal(examples, inputs),
        eps=draw.log_uniform(0.1, 3.0),
        damping=draw.log_uniform(1e-3, 10.0),
    )


def two_layer(draw: Draw, outputs: int, hidden: int, inputs: int) -> TwoLayer:
    """Draw normal layers, inputs and targets, unit δ, and random ε, λ.

    ε is in 0.1 … 3, λ in 1e-2 … 10.
    """
    return TwoLayer(
        first=draw.normal(hidden, inputs),
        second=draw.normal(outputs, hidden),
        x=draw.normal(inputs),
        y=draw.normal(outputs),
        delta=unit(draw, inputs),
        eps=draw.log_uniform(0.1, 3.0),
        damping=draw.log_uniform(1e-2, 10.0),
    )
