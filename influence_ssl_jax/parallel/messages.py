"""Bytes that the first process hands to the others."""

from collections.abc import Callable

import jax
import numpy as np

from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.parallel.processes import barrier, is_first

PIECE = 2**26
"""Bytes that are sent together, through the memory of the devices."""
_FAILED = -1


def from_first(action: Callable[[], bytes]) -> bytes:
    """Return in every process the bytes that `action` returns in the first; the others do not run it.

    All processes of a run call this at the same place.

    Raises:
        InfluenceError: It failed there. In the first process, its own error.
    """
    if jax.process_count() == 1:
        return action()
    content, failure = b"", None
    if is_first():
        try:
            content = action()
        except Exception as error:
            failure = error
    barrier("message")
    size = _size(_FAILED if failure is not None else len(content))
    if failure is not None:
        raise failure
    if size == _FAILED:
        raise InfluenceError("The first process of the run has given up; its own message says why.")
    padded = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return b"".join(_sent(padded[start : start + PIECE]).tobytes() for start in range(0, size, PIECE))


def _size(size: int) -> int:
    """Send a number of any size as two of 32 bits."""
    high, low = _sent(np.array(divmod(size, 2**30), np.int32)).tolist()
    return high * 2**30 + low


def _sent(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
