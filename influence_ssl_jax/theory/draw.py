"""Where random instances come from: numbers drawn beforehand and read off in order."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Key

_LENGTH = 320
"""More numbers than the largest instance needs."""


class Pool(NamedTuple):
    """Random numbers for many instances, one row each."""

    normals: Float[Array, "*draws length"]
    uniforms: Float[Array, "*draws length"]


def pool(key: Key[Array, ""], draws: int) -> Pool:
    """Standard normals and uniforms on [0, 1) for `draws` instances.

    Drawn in one call: a generator inside every compiled check would take most of the compilation time.
    """
    normal_key, uniform_key = jax.random.split(key)
    return Pool(jax.random.normal(normal_key, (draws, _LENGTH)), jax.random.uniform(uniform_key, (draws, _LENGTH)))


class Draw:
    """One row of a pool, read from left to right: no number is used twice within an instance."""

    def __init__(self, row: Pool):
        self._row = row
        self._normals = 0
        self._uniforms = 0

    def normal(self, *shape: int) -> Float[Array, "*shape"]:
        """Independent standard normals."""
        size = 1
        for length in shape:
            size *= length
        start, self._normals = self._normals, self._normals + size
        if self._normals > _LENGTH:
            raise ValueError(f"An instance wants {self._normals} normals and a row has {_LENGTH}: use smaller shapes.")
        return self._row.normals[start : self._normals].reshape(shape)

    def log_uniform(self, low: float, high: float) -> Float[Array, ""]:
        """One number between `low` and `high` whose logarithm is uniform."""
        self._uniforms += 1
        return low * (high / low) ** self._row.uniforms[self._uniforms - 1]
