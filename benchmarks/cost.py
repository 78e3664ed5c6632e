"""What do fitting and scoring cost, as multiples of one plain gradient over the same examples, and in seconds?

    python -m benchmarks.cost --setting.width 16

The shared ResNet-18, the same images and views in both frameworks; all operations take turns. A multiple is relative to
the *same framework's* forward and backward pass over the same examples in the same batches, run right before, so that
the speed of convolutions drops out. Seconds are per 1,000 examples. Memory is that of an operation alone, in a process
of its own; on a GPU the device's, which torch's allocator counts and XLA lays out beforehand.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

from benchmarks.measure import LONGEST, Compiled, Operation, on_gpu, peak_megabytes, rows, times
from benchmarks.results import write
from benchmarks.shared import MEAN, STD, Setting, Shared, shared
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.curvature.blocks import discover_blocks
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp import EKFAC, Backend, Damping, Identity, LoGra, Resolved
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisState, projections_onto, second_moments
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        setting: Network and images.
        ranks: Of LoGra.
        ekfac_ranks: Of EK-FAC; 0 keeps every eigenvector.
        repeats: Repetitions.
        patience: Seconds of repetitions after which an operation is not repeated again.
        peers: Whether torch takes part.
        memory: Whether every operation's memory is measured too, each in a fresh process.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=128, batch=64))
    ranks: tuple[int, ...] = (16, 64)
    ekfac_ranks: tuple[int, ...] = (32, 0)
    repeats: int = 5
    patience: float = 60.0
    peers: bool = True
    memory: bool = False

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings with one repetition of a linear network, without torch."""
        setting = Setting("linear", width=4, examples=2, batch=2, size=4)
        return cls(setting, ranks=(2,), ekfac_ranks=(), repeats=1, peers=False)


ROOT = Path(__file__).parents[1]
NORM = "squared gradient norm"
CAPTURE = "layers' inputs and output-gradients alone"
PASS = "fit: the pass over the examples"


def backends(config: Config) -> dict[str, Backend]:
    """Return the backends that are timed, by name."""
    chosen: dict[str, Backend] = {f"LoGra, rank {rank}": LoGra(rank) for rank in config.ranks}
    for rank in config.ekfac_ranks:
        chosen[f"EK-FAC, rank {rank}" if rank else "EK-FAC, every eigenvector"] = EKFAC(rank or None)
    return {**chosen, NORM: Identity(probes=1)}


def jax_operations(given: Shared, asked: dict[str, Backend], fitted: bool = True) -> dict[str, Operation]:
    """Return the operations of this package that are timed.

    Args:
        given: Network and images.
        asked: The backends, by name.
        fitted: Whether scores get a fitted state, or for the sake of time one of the same shapes.
    """
    problem, key = given.problem(), jax.random.key(0)
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i], given.batches) for i in range(len(given.batches.index))]
    gradient = jax.jit(lambda params, batch: jax.grad(given.objective)(params, given.frozen, batch))
    operations: dict[str, Operation] = {
        "gradient": Compiled(gradient, tuple((given.params, batch) for batch in batches))
    }
    operations[CAPTURE] = Compiled(jax.jit(_captures(given)), tuple((given.params, batch) for batch in batches))
    for name, backend in asked.items():
        fit = Compiled(jax.jit(backend.fit), ((problem, key),))
        state = fit.result(*fit.arguments) if fitted else jax.tree.map(_ones, jax.eval_shape(backend.fit, problem, key))
        damping = backend.resolve(state, Damping())
        if name != NORM:
            operations[f"{name}, fit"] = fit
        if isinstance(backend, LoGra):
            operations[f"{name}, {PASS}"] = Compiled(jax.jit(_moments(backend, state)), ((problem,),))
        arguments = tuple((given.params, state, damping, batch) for batch in batches)
        operations[f"{name}, score"] = Compiled(jax.jit(_scores(given, backend)), arguments)
    return operations


def _ones(like: jax.ShapeDtypeStruct) -> Array:
    return jnp.ones(like.shape, like.dtype)


def _captures(given: Shared) -> Callable[..., list[Array]]:
    """Return one forward and one backward pass without weight gradients."""
    leaves = [leaf for block in discover_blocks(given.problem(), "error") for leaf in block.leaves]

    def captures(params: Params, batch: Batch) -> list[Array]:
        gradients = measure(given.objective, params, given.frozen, batch).gradients
        taps = [tap for leaf in leaves for tap in gradients.taps(leaf)]
        arrays = [array for tap in taps for array in (*tap.operands, tap.gradients)]
        return list({id(array): array for array in arrays}.values())  # what two sites share is recorded once

    return captures


def _moments(backend: LoGra, state: EigenbasisState) -> Callable[..., tuple]:
    """Return the part of a fit that runs for every example."""
    every = frozenset(block.name for block in state.blocks)

    def moments(problem: Problem) -> tuple:
        return second_moments(problem, backend.samples, every, *projections_onto(state.blocks, state.bases))

    return moments


def _scores(given: Shared, backend: Backend) -> Callable[..., Array]:
    def scores(params: Params, state: Any, damping: Resolved, batch: Batch) -> Array:
        gradients = measure(given.objective, params, given.frozen, batch).gradients
        return backend.quadratic_form(state, gradients, damping)

    return scores


def torch_operations(given: Shared, config: Config, folder: Path) -> dict[str, Operation]:
    """Return the same operations of every peer."""
    from benchmarks.peers.operations import costs  # torch is an extra

    return costs(given, (MEAN, STD), config.setting.batch, config.ranks, folder)


def run(config: Config) -> dict:
    """Measure every operation in seconds and in gradients, by framework."""
    given = shared(config.setting)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"jax": jax_operations(given, backends(config))}
        if config.peers:
            sides["torch"] = torch_operations(given, config, Path(folder))
        rows_measured = rows(sides, config.repeats, 1000 / config.setting.examples, config.patience)
        for row in rows_measured:
            row["megabytes"] = None
            if on_gpu() and config.memory and "failed" not in row:
                row["megabytes"] = gpu_megabytes(sides[row["framework"]][row["operation"]])
    return {"data": given.data, "operations": rows_measured}


def gpu_megabytes(operation: Operation) -> float:
    """Return the device memory of an operation on a GPU."""
    if isinstance(operation, Compiled):
        return operation.megabytes()
    from benchmarks.peers.operations import megabytes  # torch is an extra

    return megabytes(operation)


def memory(config: Config, side: str, name: str) -> float:
    """Measure the memory of one operation in a fresh process, in megabytes."""
    request = json.dumps({**dataclasses.asdict(config), "side": side, "name": name})
    command = [sys.executable, "-m", "benchmarks.cost", "--memory-of", request]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=LONGEST)
    return float(done.stdout.split()[-1])


def memory_of(request: str) -> float:
    """Measure one operation for `memory`; only this operation is set up."""
    asked = json.loads(request)
    config = Config(Setting(**asked["setting"]), tuple(asked["ranks"]), tuple(asked["ekfac_ranks"]))
    given, name = shared(config.setting), asked["name"]
    with tempfile.TemporaryDirectory() as folder:
        if asked["side"] == "torch":
            operations = torch_operations(given, config, Path(folder))
            if name.endswith(", score"):
                operations.get(name.replace(", score", ", fit"), lambda: None)()  # scores take what fitting leaves
            return peak_megabytes(operations[name])
        needed = {each: backend for each, backend in backends(config).items() if name.startswith(each)}
        return peak_megabytes(jax_operations(given, needed, fitted=False)[name])


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--memory-of"]:
        print(memory_of(sys.argv[2]))
        return
    config = tyro.cli(Config)
    keep_convolutions_whole()
    record, name = run(config), f"cost_w{config.setting.width}_b{config.setting.batch}"
    timed = [row for row in record["operations"] if "failed" not in row]
    for row in record["operations"]:
        print(f"{row['framework']:6} {row['operation']:46} {row.get('failed') or times(row)}")
    write(name, config, record)
    for row in timed if config.memory and not on_gpu() else ():
        row["megabytes"] = memory(config, row["framework"], row["operation"])
        print(f"{row['framework']:6} {row['operation']:46} {row['megabytes']:8.0f} MB", flush=True)
        write(name, config, record)  # what has been measured is not lost with what has not


if __name__ == "__main__":
    main()
