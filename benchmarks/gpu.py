"""How fast are scores and pretraining of a ResNet-18 of full width on a GPU?

    python -m benchmarks.gpu --data-dir DATA --out runs/gpu               one call; the same call goes on where it ended
    python -m benchmarks.gpu --data-dir DATA --out FOLDER --steps halves  CIFAR-10 as two files, for a machine without it

A step runs in a process of its own and writes `<step>.json` as soon as it is done; a later call passes it over. A call
ends after `minutes`: what is cut off begins anew in the next call, pretraining at its last whole epoch. Steps:

    halves      write the training images of `data_dir` as `images_0.npz` and `images_1.npz`, each below 64 MiB
    LoGra       scores of all images by `LoGra(16)`; C is the empirical Fisher of `curvature` images here and below
    EKFAC       by `EKFAC(64)`
    Gram        by `Gram()`, which holds `curvature` gradients
    pretrain    SimCLR epochs in bfloat16, as many as there is time for, `epochs` in all

Of scoring: seconds to compile and to run, of the fit and of the scores apart; multiples of a plain gradient over the same
images, which runs in the same process; the peak of the device's memory; and the share of its peak arithmetic. That counts
what a score needs at least: the arithmetic of the plain gradient (XLA's count before optimisation) and, for `Gram`, the
product of the gradient with all rows. The peak is that of dense matrix products in TF32, which JAX uses there for float32.

Images are those of `data_dir`: the two files, or what tensorflow-datasets prepared there; without it synthetic ones.
"""

import dataclasses
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from influence_ssl_jax.data import Arrays, OpenSource, Synthetic, Tfds, ToInput

HALVES = ("images_0.npz", "images_1.npz")
SCORING = ("LoGra", "EKFAC", "Gram")
STEPS = (*SCORING, "pretrain")
PEAKS = {"H100 PCIe": 378.0, "H100": 494.0, "H200": 494.0, "A100": 156.0, "L40S": 183.0}
"""Words of a device's name, and its dense TFLOP/s in TF32 by the vendor's data sheet; the first match counts."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        out: Folder of the results.
        data_dir: Folder of the images.
        steps: Which, in this order.
        images: Images that are scored; fewer where there are fewer.
        width: Of the ResNet-18.
        minutes: A call ends after so many.
        batch: Images at a time.
        curvature: Images that C is made of.
        epochs: Of pretraining.
        size: Height and width of an image.
        network: The ResNet-18, or one linear layer, which the tests compile in seconds.
        peak_tflops: Of the device, where its name is not in PEAKS.
        worker: The step, in its own process; None in the call.
    """

    out: Path = Path("runs/gpu")
    data_dir: Path | None = None
    steps: tuple[str, ...] = STEPS
    images: int = 50_000
    width: int = 64
    minutes: float = 8.0
    batch: int = 250
    curvature: int = 1024
    epochs: int = 100
    size: int = 32
    network: str = "resnet18"
    peak_tflops: float | None = None
    worker: str | None = None

    def __post_init__(self) -> None:
        """Refuse steps that there are not.

        Raises:
            ValueError: One is unknown.
        """
        unknown = [step for step in self.steps if step not in (*STEPS, "halves")]
        if unknown:
            raise ValueError(f"Unknown steps {unknown}; known are halves, {', '.join(STEPS)}.")

    def settings(self) -> dict[str, Any]:
        """What a step's figures depend on."""
        names = ("images", "width", "batch", "curvature", "size", "network")
        return {name: getattr(self, name) for name in names} | {"data": self.data_dir is not None}


def main() -> None:
    """Run the steps that are not done, or one of them, and print what each found."""
    config = tyro.cli(Config)
    if config.worker is not None:
        record(config, config.worker, {**measure(config, config.worker), "finished": True})
        return
    failed = complete(config, lambda step: [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--worker", step])
    sys.exit(f"Failed: {', '.join(failed)}; see the .log files in {config.out}." if failed else 0)


def complete(config: Config, command: Callable[[str], list[str]]) -> list[str]:
    """Run every step that is not done, each by its command, until the time is over; return those that failed.

    Raises:
        ValueError: The folder holds results of other settings.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * config.minutes, []
    for step in config.steps:
        found = result(config, step)
        if found is None or not found["finished"]:
            left = end - time.monotonic()
            if left <= 0:
                print(f"{step}: no time left; the same call goes on.", flush=True)
                break
            with open(config.out / f"{step}.log", "w") as log:
                try:
                    code = subprocess.run(command(step), stdout=log, stderr=log, timeout=left, check=False).returncode
                except subprocess.TimeoutExpired:
                    code = None
            if step == "pretrain" and code != 0:
                record(config, step, {**trained(config), "finished": False})
            if code is None:
                print(f"{step}: cut off; the same call goes on.", flush=True)
            elif code:
                failed.append(step)
            found = result(config, step)
        if found is not None:
            print(step, json.dumps({k: v for k, v in found.items() if k not in ("settings", "made")}), flush=True)
    return failed


def result(config: Config, step: str) -> dict[str, Any] | None:
    """Read what a step found; None where it has not.

    Raises:
        ValueError: It was run with other settings.
    """
    path = config.out / f"{step}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found["settings"] != config.settings():
        raise ValueError(f"{path} was made with {found['settings']}, not {config.settings()}; choose another --out.")
    return found


def record(config: Config, step: str, found: dict[str, Any]) -> None:
    """Write what a step found, whole or not at all."""
    path = config.out / f"{step}.json"
    path.with_suffix(".tmp").write_text(json.dumps({**found, "settings": config.settings()}, indent=1) + "\n")
    path.with_suffix(".tmp").rename(path)


def measure(config: Config, step: str) -> dict[str, Any]:
    """Run a step in this process."""
    if step == "halves":
        return pack(config)
    return pretrained(config) if step == "pretrain" else scored(config, step)


def source(config: Config) -> OpenSource:
    """Open the images: two files, a prepared data set, or synthetic ones."""
    if config.data_dir is None:
        return Synthetic(config.images, config.size).open()
    there = [config.data_dir / name for name in HALVES if (config.data_dir / name).exists()]
    if not there:
        return Tfds("cifar10", "train", str(config.data_dir)).open()
    parts = [unpacked(path) for path in there]
    return Arrays(*(np.concatenate(each) for each in zip(*parts, strict=True))).open()


def pack(config: Config) -> dict[str, Any]:
    """Write the images in two halves, as PNG one after another, with their classes."""
    from PIL import Image

    images = source(config)
    count = min(config.images, len(images))
    sizes = {}
    for name, part in zip(HALVES, np.array_split(np.arange(count), 2), strict=True):
        encoded, labels = [], []
        for example in (images.read(int(index)) for index in part):
            stream = io.BytesIO()
            Image.fromarray(example.image).save(stream, "PNG", optimize=True)
            encoded.append(np.frombuffer(stream.getvalue(), np.uint8))
            labels.append(-1 if example.label is None else example.label)
        np.savez(
            config.out / name,
            bytes=np.concatenate(encoded),
            ends=np.cumsum([len(each) for each in encoded]),
            labels=np.asarray(labels, np.int32),
        )
        sizes[name] = (config.out / name).stat().st_size
    return {"images": count, "bytes": sizes}


def unpacked(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels and classes of one half."""
    from PIL import Image

    held = np.load(path, allow_pickle=False)
    parts = np.split(held["bytes"], held["ends"][:-1])
    return np.stack([np.asarray(Image.open(io.BytesIO(part.tobytes()))) for part in parts]), held["labels"]


def scored(config: Config, name: str) -> dict[str, Any]:
    """Fit a backend and score all images; seconds, multiples of a gradient, memory, arithmetic."""
    import jax
    import jax.numpy as jnp

    from benchmarks.measure import Compiled
    from benchmarks.results import made
    from benchmarks.shared import MEAN, STD, initial
    from influence_ssl_jax import trees
    from influence_ssl_jax.augment.noise import GaussianNoise
    from influence_ssl_jax.curvature.contributions import measure
    from influence_ssl_jax.data import resident
    from influence_ssl_jax.ihvp import EKFAC, Damping, Gram, LoGra
    from influence_ssl_jax.losses import CosineDistance
    from influence_ssl_jax.nets.linear import Linear
    from influence_ssl_jax.nets.network import Network
    from influence_ssl_jax.nets.resnet import ResNet18
    from influence_ssl_jax.problem import Objective, Problem

    backend = {"LoGra": LoGra(rank=16), "EKFAC": EKFAC(rank=64), "Gram": Gram(max_rows=config.curvature)}[name]
    network = Network({"resnet18": ResNet18, "linear": Linear}[config.network](config.width), mean=MEAN, std=STD)
    objective, images = Objective(network, GaussianNoise(), CosineDistance()), source(config)
    every = resident(images, ToInput(config.size, config.size), min(config.images, len(images)), config.batch, seed=0)
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(len(every.index))]
    first = objective.images(batches[0], jnp.float32)[0]
    params, frozen = initial(network.module, network.standardise(first))
    some = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: config.curvature], every)
    each = min(config.batch, 64)
    some = jax.tree.map(lambda leaf: leaf[: len(leaf) // each * each].reshape(-1, each, *leaf.shape[1:]), some)
    problem = Problem(params, frozen, some, objective, "empirical_fisher")

    def score(params: Any, frozen: Any, state: Any, damping: Any, batch: Any) -> Any:
        gradients = measure(objective, params, frozen, batch).gradients
        return backend.quadratic_form(state, gradients, damping)

    gradient = Compiled(jax.jit(jax.grad(objective)), tuple((params, frozen, batch) for batch in batches))
    plain = _timed(gradient)
    fit = Compiled(jax.jit(backend.fit), ((problem, jax.random.key(0)),))
    fitting = _timed(fit)
    state = fit.result(fit.arguments[0])
    damping = backend.resolve(state, Damping())
    scoring = _timed(Compiled(jax.jit(score), tuple((params, frozen, state, damping, batch) for batch in batches)))
    values = np.concatenate(scoring.pop("values"))
    count, size = len(values), trees.size(params)
    needed = gradient.lowered[0].cost_analysis()["flops"] * len(batches)
    rows = some.index.size if name == "Gram" else 0
    seconds = {
        "gradient": (plain["seconds"], needed),
        "score": (scoring["seconds"], needed + 2.0 * rows * size * count),
    }
    peak = config.peak_tflops or _peak(jax.devices()[0].device_kind)
    plain.pop("values")
    fitting.pop("values")
    return {
        "images": count,
        "parameters": size,
        "curvature images": some.index.size,
        "data": "given" if config.data_dir else "synthetic",
        "finite and positive": int(np.sum(np.isfinite(values) & (values > 0))),
        "gradient": plain,
        "fit": fitting,
        "score": scoring,
        "score in gradients": scoring["seconds"] / plain["seconds"],
        "fit in gradients": fitting["seconds"] / plain["seconds"] * count / some.index.size,
        "tflops": {key: work / taken / 1e12 for key, (taken, work) in seconds.items()},
        "share of peak": {key: peak and work / taken / 1e12 / peak for key, (taken, work) in seconds.items()},
        "peak tflops": peak,
        "peak megabytes": _megabytes(),
        "made": made(),
    }


def _timed(run: Any) -> dict[str, Any]:
    """Compile, run every call once, and wait for all of them; the calls do not wait for one another.

    The first call has run once before, which loads kernels and takes memory; where it is the only one, that run counts.
    """
    import jax

    begin = time.perf_counter()
    _ = run.program
    compiled = time.perf_counter()
    values = [jax.block_until_ready(run.result(run.arguments[0]))]
    first = time.perf_counter() - compiled
    if len(run.arguments) > 1:
        begin_all = time.perf_counter()
        values = [run.result(arguments) for arguments in run.arguments]
        jax.block_until_ready(values)
        first = time.perf_counter() - begin_all
    return {"compile seconds": compiled - begin, "seconds": first, "values": values}


def _peak(kind: str) -> float | None:
    """TFLOP/s of a device at its best; None where its name says nothing."""
    return next((peak for words, peak in PEAKS.items() if words.lower() in kind.lower()), None)


def _megabytes() -> dict[str, float]:
    """The most memory that this process has taken: of the device, and resident in the host."""
    import jax

    known = jax.local_devices()[0].memory_stats() or {}
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if "peak_bytes_in_use" in known:
        found["device"] = known["peak_bytes_in_use"] / 2**20
    return found


def pretrained(config: Config) -> dict[str, Any]:
    """Pretrain by SimCLR, from the last whole epoch on."""
    from influence_ssl_jax.losses import SimCLR
    from influence_ssl_jax.train import Architecture, Lars, Pretrain, pretrain

    settings = Pretrain(
        "simclr",
        SimCLR(0.2),
        Architecture(width=config.width),
        Lars(0.4, warmup_epochs=min(10, config.epochs - 1)),
        epochs=config.epochs,
        batch_size=min(256, config.images),
        precision="bfloat16",
    )
    pretrain(settings, source(config), ToInput(config.size, config.size), config.out / "pretrain")
    return trained(config)


def trained(config: Config) -> dict[str, Any]:
    """Sum up the epochs of pretraining that are done."""
    path = config.out / "pretrain" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = [row for row in rows if row["epoch"] > 0]
    return {
        "epochs": len(steps),
        "seconds": sum(row["seconds"] for row in steps),
        "images a second, median": float(np.median([row["images_per_second"] for row in steps])) if steps else None,
        "loss": steps[-1]["loss"] if steps else None,
        "knn": rows[-1].get("knn") if rows else None,
    }


if __name__ == "__main__":
    main()
