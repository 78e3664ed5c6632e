"""Random numbers: one named stream for each purpose, and draws that do not depend on the type in force.

Two rules keep results apart from each other and from float precision. A seed is never used as a key itself: every purpose
has its own stream of it, and below a stream keys are either numbered (`fold_in`, `split`) or drawn from, never both.
Everything is made of 32-bit integers, because JAX draws other numbers in float64, and transformed in the type that is asked
for, because float32 rounds a transformation in one program otherwise than in another.
"""

import enum
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

_ABOVE_EVERY_NUMBER = 0x80000000
"""Streams have the highest bit; numbers of examples, draws and steps are 31 bits long."""


@enum.unique
class Stream(enum.Enum):
    """What random numbers are drawn for."""

    INITIALISATION = "initial parameters"
    TRAINING_ORDER = "order of training examples"
    TRAINING_SUBSTITUTES = "substitutes of unusable training examples"
    TRAINING_EXAMPLES = "keys of training examples"
    PROBE_TRAIN = "examples that probes of training learn from"
    PROBE_TEST = "examples that probes of training are judged by"
    CURVATURE_ORDER = "choice of the curvature set"
    CURVATURE_EXAMPLES = "keys of the curvature set's examples"
    SCORED_EXAMPLES = "keys of scored examples"
    COMMON_NOISE = "noise that all scored examples share"
    PERTURBATIONS = "perturbations of an example"
    FISHER = "draws of a sampled Fisher"
    BACKEND = "a backend's bases and probes"
    SPECTRUM = "probes of a curvature's spectrum"
    ENCODER_CHECK = "images that an encoder is tried on"
    GRADIENT_CHECK = "cotangents of the check of gradients"
    NEIGHBOURS = "examples that neighbours are searched among"
    AUDITED = "choice of the audited examples"
    MEAN_EIGENVALUE = "probes of the mean eigenvalue"
    SHARED_SUBSPACE = "Krylov subspace that certificates share"
    ROUNDING = "probes of rounding"
    LARGEST_EIGENVALUE = "start of a power iteration"
    CALIBRATION = "split of a calibration"
    COVERAGE = "splits that coverage is measured over"
    HELD_OUT = "halves that calibrate each other"
    BOOTSTRAP = "bootstrap samples"
    REPORTED = "examples that a report samples"

    @property
    def number(self) -> int:
        """32 bits that stand for the name."""
        return zlib.crc32(self.value.encode()) | _ABOVE_EVERY_NUMBER


def root(seed: int, stream: Stream) -> Key[Array, ""]:
    """Return the key of a stream of a seed.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:
        raise ValueError(f"A seed is zero or positive, got {seed}.")
    key, rest = jax.random.key(seed % 2**32), seed >> 32
    while rest:  # 64-bit seeds would otherwise be cut to 32 bits where float64 is off
        key, rest = jax.random.fold_in(key, np.uint32(rest % 2**32)), rest >> 32
    return branch(key, stream)


def branch(key: Key[Array, ""], stream: Stream) -> Key[Array, ""]:
    """Return the key of a stream below another key, such as that of an example."""
    return jax.random.fold_in(key, np.uint32(stream.number))


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """Return NumPy's generator of a stream of a seed; further numbers tell its parts apart.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:
        raise ValueError(f"A seed is zero or positive, got {seed}.")
    # The stream stands first, and a stream has one count of numbers: [seed] and [seed, 0] are the same entropy to NumPy.
    return np.random.default_rng([stream.number, seed, *numbers])


def normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw standard normal numbers, the same in every type up to its rounding."""
    centred = 2 * _fraction(key, shape, dtype) - 1  # in (−1, 1), exact in float32
    return jnp.asarray(2**0.5, dtype) * jax.lax.erf_inv(centred)


def uniform(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike, low: float = 0.0, high: float = 1.0
) -> Float[Array, "*shape"]:
    """Draw uniform numbers of (low, high), the same in every type up to its rounding."""
    return low + (high - low) * _fraction(key, shape, dtype)


def _fraction(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw odd multiples of 2⁻²⁴ in (0, 1): exact in float32, and so in every wider type."""
    odd = 2 * (jax.random.bits(key, shape, jnp.uint32) >> 9) + 1
    wide = jnp.promote_types(dtype, jnp.float32)
    return (odd.astype(wide) * jnp.asarray(2.0**-24, wide)).astype(dtype)


def signs(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw independent signs, −1 or 1 with probability ½ each."""
    return jnp.where(jax.random.bits(key, shape, jnp.uint32) >> 31, -1, 1).astype(dtype)


def coin(key: Key[Array, ""], probability: float) -> Bool[Array, ""]:
    """Draw whether something of a given probability happens."""
    return jax.random.uniform(key, (), jnp.float32) < probability


def integers(key: Key[Array, ""], shape: tuple[int, ...], low: int, high: int) -> Int[Array, "*shape"]:
    """Draw uniform integers of [low, high), 32 bits long."""
    return jax.random.randint(key, shape, low, high, jnp.int32)
