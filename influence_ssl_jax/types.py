"""The vocabulary: what the arrays and trees of this package are called."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int, Key, Num

PyTree: TypeAlias = Any
"""Any nesting of dicts, tuples and registered dataclasses with arrays at its leaves."""

Params: TypeAlias = PyTree
"""Trainable parameters θ: what is differentiated."""

Frozen: TypeAlias = PyTree
"""What a network reads and nobody differentiates: `{"batch_stats": …}`, and beside it `{"target": {"params": …, …}}`
where a loss compares with a target network (BYOL)."""


if TYPE_CHECKING:
    OnHostOrDevice: TypeAlias = Array
else:  # what computes is handed arrays of JAX; a loader's are NumPy's until it places them
    OnHostOrDevice = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples as they travel: raw pixels, one PRNG key and one index per example.

    The key belongs to the *example*, not to its place in a batch: whatever is random about an example (its views, its
    perturbation) is the same in every batch, order, device count and process count. Pixels and numbers are NumPy's until
    a loader places them on a device.

    Attributes:
        image: Pixels, uint8 in 0…255 or floating point in [0, 1].
        key: One typed PRNG key per example.
        index: The example's number in its source; −1 marks padding.
        label: The example's class where one is known (only the supervised baseline reads it).
    """

    image: Num[OnHostOrDevice, "*batch height width channels"]
    key: Key[Array, "*batch"]
    index: Int[OnHostOrDevice, "*batch"]
    label: Int[OnHostOrDevice, "*batch"] | None = None
