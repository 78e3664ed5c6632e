"""Define the names of the arrays and trees of this package."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int, Key, Num

PyTree: TypeAlias = Any
"""A nesting of dicts, tuples and registered dataclasses with arrays at its leaves."""

Params: TypeAlias = PyTree
"""Trainable parameters θ, which are differentiated."""

Frozen: TypeAlias = PyTree
"""State that a network reads and that is not differentiated.

It is `{"batch_stats": …}`, with `{"target": {"params": …, …}}` beside it if a loss compares with a target network of
its own parameters (BYOL).
"""


if TYPE_CHECKING:
    OnHostOrDevice: TypeAlias = Array
else:  # computations receive arrays of JAX; a loader's arrays are NumPy's until it places them
    OnHostOrDevice = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of examples: pixels, and each example's key and index.

    The key belongs to the *example*, not to its place in a batch: the random draws of an example (its views, its
    perturbation) are the same in every batch, order, device count and process count. Pixels and numbers are NumPy
    arrays until a loader places them on a device.

    Attributes:
        image: Pixels, uint8 in 0…255 or floating point in [0, 1].
        key: One typed PRNG key for each example.
        index: Number of the example in its source; −1 marks padding.
        label: Class of the example; None if it is not known (only the supervised baseline reads it).
    """

    image: Num[OnHostOrDevice, "*batch height width channels"]
    key: Key[Array, "*batch"]
    index: Int[OnHostOrDevice, "*batch"]
    label: Int[OnHostOrDevice, "*batch"] | None = None
