"""Draw random numbers from named streams, equal in every float type.

Two rules keep results independent of each other and of the float type. First, a seed is never used as a key itself:
every purpose has its own stream of the seed, and a key below a stream is either split (`fold_in`, `split`) or drawn
from, never both. Second, all draws start from 32-bit integers, because JAX draws other numbers in float64; the integers
are transformed in the requested type, because float32 rounds a transformation differently in different programs.
"""

import enum
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

_ABOVE_EVERY_NUMBER = 0x80000000
"""Streams have the highest bit set; numbers of examples, draws and steps have 31 bits."""


@enum.unique
class Stream(enum.Enum):
    """Purposes of random numbers."""

    INITIALISATION = "initial parameters"
    TRAINING_ORDER = "order of training examples"
    TRAINING_SUBSTITUTES = "substitutes of unusable training examples"
    TRAINING_EXAMPLES = "keys of training examples"
    PROBE_TRAIN = "examples that probes of training learn from"
    PROBE_TEST = "examples that probes of training are judged by"
    LEFT_OUT = "training examples that are left out for probes"
    LINEAR_ORDER = "order of the examples of a linear evaluation"
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
        """A number of 32 bits for the stream."""
        return zlib.crc32(self.value.encode()) | _ABOVE_EVERY_NUMBER


def root(seed: int, stream: Stream) -> Key[Array, ""]:
    """Return the key of a stream of a seed.

    Raises:
        ValueError: If the seed is negative.

    Examples:
        Streams of the same seed are independent.

        >>> import jax
        >>> from influence_ssl_jax.randomness import Stream, root
        >>> keys = [jax.random.key_data(root(0, stream)).tolist() for stream in (Stream.BACKEND, Stream.FISHER)]
        >>> keys[0] == keys[1]
        False
    """
    if seed < 0:
        raise ValueError(f"A seed is zero or positive, got {seed}.")
    key, rest = jax.random.key(seed % 2**32), seed >> 32
    while rest:  # without this, seeds of 64 bits would lose their upper half if JAX is not in 64-bit mode
        key, rest = jax.random.fold_in(key, np.uint32(rest % 2**32)), rest >> 32
    return branch(key, stream)


def branch(key: Key[Array, ""], stream: Stream) -> Key[Array, ""]:
    """Return the key of a stream below another, such as an example's."""
    return jax.random.fold_in(key, np.uint32(stream.number))


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """Return NumPy's generator of a stream of a seed.

    Further numbers select parts of the stream.

    Raises:
        ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"A seed is zero or positive, got {seed}.")
    # [seed] and [seed, 0] are the same entropy to NumPy, so each stream always passes the same count of numbers.
    return np.random.default_rng([stream.number, seed, *numbers])


def normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw standard normal numbers, equal in all types up to rounding."""
    centred = 2 * _fraction(key, shape, dtype) - 1  # in (−1, 1), exact in float32
    return jnp.asarray(2**0.5, dtype) * jax.lax.erf_inv(centred)


def uniform(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike, low: float = 0.0, high: float = 1.0
) -> Float[Array, "*shape"]:
    """Draw uniform numbers in `(low, high)`, equal in all types up to rounding."""
    return low + (high - low) * _fraction(key, shape, dtype)


def _fraction(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw odd multiples of 2⁻²⁴ in (0, 1).

    They are exact in float32, and so in every wider type.
    """
    odd = 2 * (jax.random.bits(key, shape, jnp.uint32) >> 9) + 1
    wide = jnp.promote_types(dtype, jnp.float32)
    return (odd.astype(wide) * jnp.asarray(2.0**-24, wide)).astype(dtype)


def signs(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Float[Array, "*shape"]:
    """Draw independent signs, −1 or 1 with probability ½ each."""
    return jnp.where(jax.random.bits(key, shape, jnp.uint32) >> 31, -1, 1).astype(dtype)


def coin(key: Key[Array, ""], probability: float) -> Bool[Array, ""]:
    """Draw true with the given probability."""
    return jax.random.uniform(key, (), jnp.float32) < probability


def integers(key: Key[Array, ""], shape: tuple[int, ...], low: int, high: int) -> Int[Array, "*shape"]:
    """Draw uniform 32-bit integers in [low, high)."""
    return jax.random.randint(key, shape, low, high, jnp.int32)
