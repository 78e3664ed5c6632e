"""How fast are scores and pretraining of a ResNet-18 of full width on a GPU?

    python -m benchmarks.gpu --data-dir DATA --out runs/gpu               one call; the same call continues where it ended
    python -m benchmarks.gpu --data-dir DATA --out FOLDER --steps files   CIFAR-10 as three files, for a machine without it

A step runs in a process of its own and writes `<step>.json` as soon as it is done; a later call passes it over. A call
ends after `minutes`: a step that is cut off begins again in the next call, pretraining at its last whole epoch. Steps:

    files       write CIFAR-10 as test.parquet, train_0.parquet and train_1.parquet, the largest of 43 MiB
    LoGra       scores of all images by `LoGra(16)`; C is the empirical Fisher of `curvature` images here and below
    EKFAC       by `EKFAC(64)`
    Gram        by `Gram()`, which holds `curvature` gradients
    pretrain    SimCLR by solo-learn's recipe in bfloat16: as many epochs as there is time for, `epochs` in all

Products of float32 numbers are those of `precision`: `highest`, the command line's choice, or `tensorfloat32`.

Of scoring: seconds to compile and to run, of the fit and of the scores apart; multiples of a plain gradient over the same
images, which runs in the same process; the peak of the device's memory; and the share of its peak arithmetic. That counts
what a score needs at least: the arithmetic of the plain gradient (XLA's count before optimisation) and, for `Gram`, the
product of the gradient with all rows. The peak is that of dense products of float32 numbers in the chosen precision.

Images are those of `data_dir`: the files, or what tensorflow-datasets prepared there; without it synthetic ones. Where
test images are known, pretraining's accuracies of neighbours are theirs.
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
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tyro
from PIL import Image
from pyarrow import parquet

from influence_ssl_jax.data import OpenSource, Parquet, Synthetic, Tfds, ToInput

SCORING = ("LoGra", "EKFAC", "Gram")
STEPS = (*SCORING, "pretrain")
PEAKS = {
    "H100 PCIe": (51.0, 378.0),
    "H100": (67.0, 494.0),
    "H200": (67.0, 494.0),
    "A100": (19.5, 156.0),
    "L40S": (91.6, 183.0),
}
"""Words of a device's name; its dense TFLOP/s in float32 and in TF32 by the vendor's data sheet. The first match counts."""


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
        precision: Of the products of float32 numbers.
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
    precision: Literal["highest", "tensorfloat32"] = "highest"
    peak_tflops: float | None = None
    worker: str | None = None

    def __post_init__(self) -> None:
        """Refuse steps that there are not.

        Raises:
            ValueError: One is unknown.
        """
        unknown = [step for step in self.steps if step not in (*STEPS, "files")]
        if unknown:
            raise ValueError(f"Unknown steps {unknown}; known are files, {', '.join(STEPS)}.")

    def settings(self) -> dict[str, Any]:
        """Return everything that the figures of a step depend on."""
        names = ("images", "width", "batch", "curvature", "size", "network", "precision")
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
        content = result(config, step)
        if content is None or not content["finished"]:
            left = end - time.monotonic()
            if left <= 0:
                print(f"{step}: no time left; the same call continues.", flush=True)
                break
            with open(config.out / f"{step}.log", "w") as log:
                try:
                    code = subprocess.run(command(step), stdout=log, stderr=log, timeout=left, check=False).returncode
                except subprocess.TimeoutExpired:
                    code = None
            if step == "pretrain" and code != 0:
                record(config, step, {**sum_up(config), "finished": False})
            if code is None:
                print(f"{step}: cut off; the same call continues.", flush=True)
            elif code:
                failed.append(step)
            content = result(config, step)
        if content is not None:
            print(step, json.dumps({k: v for k, v in content.items() if k not in ("settings", "made")}), flush=True)
    return failed


def result(config: Config, step: str) -> dict[str, Any] | None:
    """Read what a step found; None where it has not.

    Raises:
        ValueError: It was run with other settings.
    """
    path = config.out / f"{step}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if content["settings"] != config.settings():
        raise ValueError(f"{path} was made with {content['settings']}, not {config.settings()}; choose another --out.")
    return content


def record(config: Config, step: str, content: dict[str, Any]) -> None:
    """Write what a step found, whole or not at all."""
    path = config.out / f"{step}.json"
    path.with_suffix(".tmp").write_text(json.dumps({**content, "settings": config.settings()}, indent=1) + "\n")
    path.with_suffix(".tmp").rename(path)


def measure(config: Config, step: str) -> dict[str, Any]:
    """Run a step in this process."""
    if step == "files":
        return pack(config)
    if step == "pretrain":
        return pretrained(config)
    import jax

    with jax.default_matmul_precision(config.precision):
        return scored(config, step)


def source(config: Config) -> OpenSource:
    """Open the images: files, a prepared data set, or synthetic ones."""
    return Synthetic(config.images, config.size).open() if config.data_dir is None else _part(config.data_dir, "train")


def test_source(config: Config) -> OpenSource | None:
    """Open the test images; there are none of synthetic ones."""
    return None if config.data_dir is None else _part(config.data_dir, "test")


def _part(folder: Path, part: str) -> OpenSource:
    if list(folder.glob("*.parquet")):
        return Parquet(f"{folder}/{part}*.parquet", id="id").open()
    return Tfds("cifar10", part, str(folder)).open()


def pack(config: Config) -> dict[str, Any]:
    """Write every image as WebP without loss, with its id and class: the test images, and each half of the others."""
    train, test = source(config), test_source(config)
    halves = np.array_split(np.arange(min(config.images, len(train))), 2)
    parts = {f"train_{number}": (train, chosen) for number, chosen in enumerate(halves)}
    if test is not None:
        parts["test"] = (test, np.arange(len(test)))
    sizes = {}
    for name, (images, chosen) in parts.items():
        ids, read = list(images.ids()), [images.read(int(index)) for index in chosen]
        columns = {
            "id": [ids[index] for index in chosen],
            "image": [_webp(example.image) for example in read],
            "label": [example.label for example in read],
        }
        path = config.out / f"{name}.parquet"
        parquet.write_table(pa.table(columns), path, row_group_size=1000)
        sizes[path.name] = path.stat().st_size
    return {"images": sum(len(chosen) for _, chosen in parts.values()), "bytes": sizes}


def _webp(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True, exact=True)
    return stream.getvalue()


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
    plain = _timed("gradient", gradient)
    fit = Compiled(jax.jit(backend.fit), ((problem, jax.random.key(0)),))
    fitting = _timed("fit", fit)
    (state,) = fitting.pop("values")
    damping = backend.resolve(state, Damping())
    scores = Compiled(jax.jit(score), tuple((params, frozen, state, damping, batch) for batch in batches))
    scoring = _timed("score", scores)
    values = np.concatenate(scoring.pop("values"))
    count, size = len(values), trees.size(params)
    needed = _arithmetic(jax.grad(objective), (params, frozen, batches[0])) * len(batches)
    rows = some.index.size if name == "Gram" else 0
    seconds = {
        "gradient": (plain["seconds"], needed),
        "score": (scoring["seconds"], needed + 2.0 * rows * size * count),
    }
    peak = config.peak_tflops or _peak(jax.devices()[0].device_kind, config.precision)
    plain.pop("values")
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


def _timed(name: str, run: Any) -> dict[str, Any]:
    """Time calls that do not wait for each other.

    The first call has run once before, which loads kernels and takes memory; where it is the only one, that run counts.
    """
    import jax

    begin = time.perf_counter()
    _ = run.program
    compiled = time.perf_counter()
    print(f"{name}: compiled in {compiled - begin:.1f} s", flush=True)
    values = [jax.block_until_ready(run.result(run.arguments[0]))]
    seconds = time.perf_counter() - compiled
    print(f"{name}: first of {len(run.arguments)} calls ran {seconds:.2f} s", flush=True)
    if len(run.arguments) > 1:
        begin_all = time.perf_counter()
        values = [run.result(arguments) for arguments in run.arguments]
        jax.block_until_ready(values)
        seconds = time.perf_counter() - begin_all
        print(f"{name}: all ran {seconds:.2f} s", flush=True)
    return {"compile seconds": compiled - begin, "seconds": seconds, "values": values}


def _arithmetic(function: Any, arguments: Any) -> float:
    """Count a program's floating-point operations before optimisation; XLA counts those of programs for a CPU alone."""
    import jax

    leaves, structure = jax.tree.flatten(jax.device_put(arguments, jax.devices("cpu")[0]))
    lowered = jax.jit(lambda leaves: function(*jax.tree.unflatten(structure, leaves))).lower(leaves)
    return (lowered.cost_analysis() or {})["flops"]


def _peak(kind: str, precision: str) -> float | None:
    """Return the peak TFLOP/s of a device; None if it is unknown.

    Its name tells which one it is.
    """
    peak = next((peaks for words, peaks in PEAKS.items() if words.lower() in kind.lower()), None)
    return peak and peak[precision == "tensorfloat32"]


def _megabytes() -> dict[str, float]:
    """Return the peak memory of this process, on device and host."""
    import jax

    known = jax.local_devices()[0].memory_stats() or {}
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if "peak_bytes_in_use" in known:
        peaks["device"] = known["peak_bytes_in_use"] / 2**20
    return peaks


def pretrained(config: Config) -> dict[str, Any]:
    """Pretrain by SimCLR, from the last whole epoch on; the encoder is written beside it, in 16 bits."""
    from influence_ssl_jax.data import cache
    from influence_ssl_jax.train import RECIPES, pretrain

    recipe = RECIPES["solo_learn_simclr"]
    settings = dataclasses.replace(
        recipe,
        architecture=dataclasses.replace(recipe.architecture, width=config.width),
        optimiser=dataclasses.replace(recipe.optimiser, warmup_epochs=min(10, config.epochs - 1)),
        epochs=config.epochs,
        batch_size=min(recipe.batch_size, config.images),
    )
    transform = ToInput(config.size, config.size)
    train, test = source(config), test_source(config)
    queries = None if test is None else cache(test, transform)
    trained = pretrain(settings, cache(train, transform), transform, config.out / "pretrain", queries)
    trained.encoder().save(config.out / f"simclr_w{config.width}_cifar10", "float16")
    return sum_up(config)


def sum_up(config: Config) -> dict[str, Any]:
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
