"""What does splitting over devices and processes cost?

    python benchmarks/scaling.py

Simulated devices (1, 2, 4, 8) share the cores of this machine, so no speed-up beyond its cores can show: the table says
what the sharded program adds to the plain one over the same images, interleaved in one process, medians of ratios.
Strong scaling divides a batch of `batch` images over the devices; weak scaling gives each device `batch / 8`. Two
processes score at once, each as many images as one process that scores alone. Minutes. Expected: near 1 as far as
cores are free.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """How much.

    Attributes:
        batch: Images of the strong scaling's batch; a multiple of 8.
        repeats: Interleaved repetitions.
        devices: Numbers of simulated devices.
        worker: Set in the processes that measure: "devices" or "process".
        out: Where the JSON goes.
    """

    batch: int = 256
    repeats: int = 9
    devices: tuple[int, ...] = (1, 2, 4, 8)
    worker: str = ""
    out: Path = Path(__file__).parent / "results" / "scaling.json"


def scorer_and_images(batch: int):
    """Fit a LoGra to a small convolutional network, and draw images."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from influence_ssl_jax.augment.noise import GaussianNoise
    from influence_ssl_jax.ihvp import LoGra
    from influence_ssl_jax.losses import CosineDistance
    from influence_ssl_jax.nets.network import Network
    from influence_ssl_jax.problem import Objective, Problem
    from influence_ssl_jax.scoring.scores import Scorer, Scoring
    from influence_ssl_jax.types import Batch

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            del train
            x = nn.relu(nn.Conv(16, (3, 3), strides=(2, 2), name="first")(x))
            x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2), name="second")(x))
            return nn.Dense(32, name="head")(x.mean((1, 2)))

    def images(count):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        index = jnp.arange(count, dtype=jnp.int32)
        return Batch(jnp.asarray(pixels), jax.random.split(jax.random.key(0), count), index, index)

    params = Net().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    objective = Objective(Network(Net()), GaussianNoise(), CosineDistance())
    problem = Problem(params, {}, jax.tree.map(lambda leaf: leaf[None], images(64)), objective)
    return Scorer.fit(problem, LoGra(rank=8), Scoring(draws=1, batch_size=batch)), images


def timed(operation) -> float:
    """Time one call."""
    import jax

    began = time.perf_counter()
    jax.block_until_ready(operation())
    return time.perf_counter() - began


def on_devices(config: Config) -> dict[str, float]:
    """Compare the sharded program with the plain one, in this process."""
    import jax

    from influence_ssl_jax.parallel import local_devices, replicate, split

    scorer, images = scorer_and_images(config.batch)
    mesh = local_devices()
    everywhere, ratio = replicate(scorer, mesh), {}
    for kind, count in (("strong", config.batch), ("weak", config.batch // 8 * mesh.size)):
        whole = images(count)
        parts = split(whole, mesh)

        def sharded(parts=parts):
            with jax.set_mesh(mesh):
                return everywhere(parts)

        ratios = [timed(sharded) / timed(lambda whole=whole: scorer(whole)) for _ in range(config.repeats + 1)]
        ratio[kind] = statistics.median(ratios[1:])
    return ratio


def in_process(config: Config) -> dict[str, float]:
    """Time a number of batches, from a moment that the caller gives."""
    scorer, images = scorer_and_images(config.batch)
    batch = images(config.batch)
    timed(lambda: scorer(batch))
    print("ready", flush=True)
    sys.stdin.readline()
    return {"seconds": sum(timed(lambda: scorer(batch)) for _ in range(config.repeats))}


def begin(config: Config, worker: str, devices: int = 1) -> subprocess.Popen:
    """Start a process of this program that measures."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    command = [
        sys.executable,
        __file__,
        "--worker",
        worker,
        "--batch",
        str(config.batch),
        "--repeats",
        str(config.repeats),
    ]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def together(config: Config, processes: int) -> float:
    """Time several processes that start at one moment."""
    running = [begin(config, "process") for _ in range(processes)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        outputs.append(json.loads(process.communicate(timeout=6 * 3600)[0].splitlines()[-1])["seconds"])
    return max(outputs)


def run(config: Config) -> dict:
    """Measure the table."""
    rows = {}
    for devices in config.devices:
        rows[str(devices)] = json.loads(
            begin(config, "devices", devices).communicate(timeout=6 * 3600)[0].splitlines()[-1]
        )
        print(f"{devices} devices: sharded / plain {rows[str(devices)]}", flush=True)
    alone, two = together(config, 1), together(config, 2)
    print(f"two processes: twice the images in {two / alone:.2f} times the time of one", flush=True)
    return {
        "sharded / plain": rows,
        "two processes with twice the images / one process": two / alone,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    if config.worker:
        record = {"devices": on_devices, "process": in_process}[config.worker](config)
        print(json.dumps(record))
        return
    record = run(config)
    settings = {"batch": config.batch, "repeats": config.repeats}
    config.out.parent.mkdir(exist_ok=True)
    config.out.write_text(json.dumps({"config": settings, "found": record, "load": os.getloadavg()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
