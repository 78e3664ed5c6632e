"""Time and memory of operations, side by side: interleaved repetitions, ratios, peak memory of a fresh process."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

Operation: TypeAlias = Callable[[], object]
"""Runs to the end: an operation of JAX blocks until its result is ready."""


class Spread(NamedTuple):
    """A median, and the lowest and highest of the repetitions."""

    median: float
    low: float
    high: float


def interleaved(operations: dict[str, Operation], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repetition of every operation; a first one, which compiles, is not counted.

    All operations run once before any runs again, so that what else the machine does falls on all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for repeat in range(repeats + 1):
        for name, operation in operations.items():
            begin = time.perf_counter()
            operation()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def spread(values: list[float]) -> Spread:
    """Median and extremes."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(over: list[float], under: list[float]) -> Spread:
    """Ratios of repetitions that ran one after the other."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def peak_megabytes(operation: Operation) -> float:
    """Memory that one run of an operation takes at its peak above what is resident before it; Linux only.

    The operation has run once before, so that nothing is compiled.
    """
    operation()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    operation()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
