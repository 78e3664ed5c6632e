"""Time and memory of operations, side by side: interleaved repetitions, ratios, peak memory of a fresh process."""

import ctypes
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)
Operation: TypeAlias = Callable[[], object]
"""Runs to the end: an operation of JAX blocks until its result is ready."""
LONGEST = 6 * 3600.0
"""Seconds after which a process of a benchmark is ended: longer than any takes."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function under `jit`, called with each of several arguments to the end.

    Attributes:
        function: What `jax.jit` made.
        arguments: One tuple a call, all of the same shapes.
    """

    function: jax.stages.Wrapped
    arguments: tuple[tuple, ...]

    @functools.cached_property
    def lowered(self) -> tuple[jax.stages.Lowered, Any]:
        """The program, traced once from leaves to leaves, and the structure of its result.

        Lowering puts objects that are not arrays into trees, so leaves are passed in place of trees.
        """
        leaves, structure = jax.tree.flatten(self.arguments[0])
        results = []

        def flat(*leaves: jax.Array) -> list[jax.Array]:
            outputs, result = jax.tree.flatten(self.function(*jax.tree.unflatten(structure, leaves)))
            results.append(result)
            return outputs

        return jax.jit(flat).lower(*leaves), results[-1]

    @functools.cached_property
    def program(self) -> tuple[jax.stages.Compiled, Any]:
        """Compiled once, and the result's structure."""
        lowered, structure = self.lowered
        return lowered.compile(), structure

    def result(self, arguments: tuple) -> Any:
        """Return the result of one call."""
        program, structure = self.program
        return jax.tree.unflatten(structure, program(*jax.tree.leaves(arguments)))

    def __call__(self) -> None:
        """Run every call, one after another."""
        for arguments in self.arguments:
            jax.block_until_ready(self.result(arguments))

    def flops(self) -> float:
        """Return XLA's count of the floating-point operations of one call.

        The body of a loop counts once, a library's routine (an eigendecomposition) not at all.
        """
        return float(self.program[0].cost_analysis()["flops"])

    def megabytes(self) -> float:
        """Return the device memory of one call beside its arguments."""
        used = self.program[0].memory_analysis()
        return (used.temp_size_in_bytes + used.output_size_in_bytes) / 2**20


class Spread(NamedTuple):
    """A median, and the lowest and highest of the repetitions."""

    median: float
    low: float
    high: float


def interleaved(
    turns: Mapping[Name, tuple[Operation, ...]],
    repeats: int,
    failed: dict[Name, str] | None = None,
    patience: float = math.inf,
) -> dict[Name, list[tuple[float, ...]]]:
    """Time all operations in turns, without a first one that compiles.

    The operations of a turn run one right after another, and all turns run once before any runs again: what else the
    machine does falls on all of them. A turn that cannot run at all is entered in `failed` with the reason, and has no
    repetition; without `failed` it is an error. One whose last operation has taken `patience` seconds in all
    repetitions together is not repeated again; where that is so at once and nothing was compiled, the first one counts.
    """
    seconds: dict[Name, list[tuple[float, ...]]] = {name: [] for name in turns}
    for repeat in range(repeats + 1):
        for name, turn in turns.items():
            if (failed and name in failed) or sum(taken[-1] for taken in seconds[name]) >= patience:
                continue
            try:
                taken = tuple(_seconds(operation) for operation in turn)
            except Exception as error:
                if failed is None or repeat:
                    raise
                failed[name] = (str(error) or type(error).__name__).splitlines()[0]
                continue
            if repeat or (taken[-1] >= patience and not isinstance(turn[-1], Compiled)):
                seconds[name].append(taken)
    return seconds


def _seconds(operation: Operation) -> float:
    begin = time.perf_counter()
    operation()
    return time.perf_counter() - begin


def spread(values: list[float]) -> Spread:
    """Return the median and the extremes."""
    return Spread(statistics.median(values), min(values), max(values))


def rows(
    sides: dict[str, dict[str, Operation]], repeats: int, scale: float = 1.0, patience: float = math.inf
) -> list[dict[str, Any]]:
    """Return seconds, multiples of the gradient, and arithmetic, by operation.

    A gradient runs right before every repetition of every operation, which is that repetition's unit. `arithmetic` is
    the ratio of XLA's counts of operations, for what runs no loop over vectors: noise does not touch it. An operation
    that cannot run has the reason instead, as `failed`.
    """
    together = {(side, name): operation for side, named in sides.items() for name, operation in named.items()}
    turns = {
        (side, name): (operation,) if name == "gradient" else (sides[side]["gradient"], operation)
        for (side, name), operation in together.items()
    }
    failed: dict[tuple[str, str], str] = {}
    seconds = interleaved(turns, repeats, failed, patience)
    table = []
    for (side, name), operation in together.items():
        row: dict[str, Any] = {"framework": side, "operation": name}
        if (side, name) in failed:
            table.append(row | {"failed": failed[side, name]})
            continue
        own = together[side, "gradient"]
        counts = "block of" not in name and not on_gpu()  # where libraries compute what is not counted
        counted = counts and isinstance(operation, Compiled) and isinstance(own, Compiled)
        row["seconds"] = spread([taken[-1] * scale for taken in seconds[side, name]])
        row["gradients"] = spread([taken[-1] / taken[0] for taken in seconds[side, name]])
        table.append(row | {"arithmetic": operation.flops() / own.flops() if counted else None})
    return table


def times(row: dict[str, Any]) -> str:
    """Describe a row of `rows` in words."""
    return f"{row['seconds'][0]:8.3f} s {row['gradients'][0]:7.2f} gradients"


def peak_megabytes(operation: Operation) -> float:
    """Measure the peak memory of one run above the resident memory.

    This works on Linux only.

    The operation has run once before, so that nothing is compiled.
    """
    operation()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is reset
    before = _status("VmRSS")
    operation()
    return (_status("VmHWM") - before) / 1024


def on_gpu() -> bool:
    """Test whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
