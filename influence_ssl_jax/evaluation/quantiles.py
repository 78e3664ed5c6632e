"""Exact quantiles of numbers that are read a piece at a time."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt

DIGIT, ROUNDS = 16, 4
"""Bits of a number that one reading settles, and how many readings settle all 64."""


def quantiles(
    pieces: Callable[[], Iterable[Float[np.ndarray, " some"]]], shares: Sequence[float]
) -> Float[np.ndarray, " shares"]:
    """Return quantiles of finite numbers in bounded memory.

    They are interpolated as `np.quantile` does. The memory does not grow with the numbers.

    A float64 that is read as an integer, with the order of the negative ones turned, sorts as the numbers do. Each of ROUNDS
    readings counts the next DIGIT bits of the numbers that begin as a wanted one does, and so finds these bits of it
    (radix selection).

    Args:
        pieces: The numbers, from the beginning whenever they are asked for.
        shares: Which quantiles, each from 0 to 1.

    Returns:
        One number for each share, NaN where there are no numbers.

    >>> [float(number) for number in quantiles(lambda: [np.array([3.0, 1.0]), np.array([2.0, 10.0])], [0.5, 1.0])]
    [2.5, 10.0]
    """
    count = sum(len(piece) for piece in pieces())
    if not count:
        return np.full(len(shares), np.nan)
    place = np.asarray(shares, float) * (count - 1)
    below = np.floor(place).astype(np.int64)
    ranks, inverse = np.unique(np.append(below, np.minimum(below + 1, count - 1)), return_inverse=True)
    low, high = np.split(_select(pieces, ranks)[inverse], 2)
    part = place - below
    return np.where(part < 0.5, low + (high - low) * part, high - (high - low) * (1 - part))


def _select(
    pieces: Callable[[], Iterable[Float[np.ndarray, " some"]]], ranks: Int[np.ndarray, " ranks"]
) -> Float[np.ndarray, " ranks"]:
    """Return the numbers that have some ranks, 0 the lowest."""
    left, begun = ranks.copy(), np.zeros(len(ranks), np.uint64)
    for number in range(ROUNDS):
        shift = np.uint64(64 - DIGIT * (number + 1))
        starts, which = np.unique(begun, return_inverse=True)
        counts = np.zeros((len(starts), 2**DIGIT), np.int64)
        for piece in pieces():
            keys = _sortable(piece) >> shift
            for row, start in enumerate(starts):
                digits = keys[keys >> np.uint64(DIGIT) == start] & np.uint64(2**DIGIT - 1)
                counts[row] += np.bincount(digits.astype(np.int64), minlength=2**DIGIT)
        reached = np.cumsum(counts, axis=1)
        digit = np.array([np.searchsorted(reached[row], rank, "right") for row, rank in zip(which, left, strict=True)])
        left -= reached[which, digit] - counts[which, digit]
        begun = (begun << np.uint64(DIGIT)) | digit.astype(np.uint64)
    return _numbers(begun)


def _sortable(numbers: Float[np.ndarray, " some"]) -> UInt[np.ndarray, " some"]:
    """Return integers that sort as the numbers do."""
    bits = np.ascontiguousarray(numbers, np.float64).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _numbers(keys: UInt[np.ndarray, " some"]) -> Float[np.ndarray, " some"]:
    """Return the numbers that `_sortable` made integers of."""
    return np.where(keys >> np.uint64(63), keys & np.uint64((1 << 63) - 1), ~keys).view(np.float64)
