"""Does the memory of a scoring run stay flat, however many examples it scores?

    python benchmarks/memory_flat.py --examples 1000000

Scores synthetic 32×32 images (made as they are read) by the steps of the command line: stream, parts on disk, nearest
neighbours, one table. The resident memory of the process is read from the kernel all the while. The network is a 4×4
convolution of stride 4 with 2 channels and a Dense layer, so that a million takes minutes. Expected: after the first
parts the curve is flat while scoring; the distances and the table add what is proportional to examples and not to
pixels (some bytes each).
"""

import dataclasses
import json
import tempfile
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import tyro

mpl.use("agg")
import matplotlib.pyplot as plt

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.data import Example, OpenSource, Skipped, ToInput, resident
from influence_ssl_jax.ihvp import LoGra
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.progress import silent
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.run_log import RunLog
from influence_ssl_jax.runs.score import neighbours_of, write_parts
from influence_ssl_jax.runs.settings import Parts
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.scoring.stream import stream
from influence_ssl_jax.scoring.table import neighbour_columns
from influence_ssl_jax.store import ScoreStore

SIZE = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """How many.

    Attributes:
        examples: Images.
        batch: At a time.
        every: Seconds between readings.
        out: Where the JSON goes; the curve goes beside it.
    """

    examples: int = 1_000_000
    batch: int = 512
    every: float = 1.0
    out: Path = Path(__file__).parent / "results" / "memory_flat.json"


class Tiny(nn.Module):
    """64 positions, 98 + 24 parameters."""

    @nn.compact
    def __call__(self, x, train=False):
        del train
        x = jnp.tanh(nn.Conv(2, (4, 4), strides=(4, 4), name="conv")(x))
        return nn.Dense(8, name="head")(x.mean((1, 2)))


class Stripes(OpenSource):
    """Images computed from their number, a few microseconds each: noise whose contrast and colour differ."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._noise = np.random.default_rng(0).integers(0, 256, (257, SIZE, SIZE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Example:
        """Return one of 257 noises, shifted and darkened by its number."""
        image = np.roll(self._noise[index % 257], index // 257 % SIZE, axis=0) >> (index // 8224 % 4)
        return Example(index, str(index), image)

    def read_many(self, indices) -> list[Example | Skipped]:
        """Read images one after the other."""
        return [self.read(index) for index in indices]

    def attributes(self) -> None:
        """Return no attributes."""
        return

    def fingerprint(self) -> str:
        """Return the number of images as a hash."""
        return f"stripes {self._count}"


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Watch:
    """Readings of memory and of the examples done, from a thread."""

    def __init__(self, every: float) -> None:
        self.rows: list[tuple[float, str, int, float]] = []
        self.phase, self.done, self._began = "start", 0, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(every,), daemon=True)
        self._thread.start()

    def _read(self, every: float) -> None:
        while not self._stop.wait(every):
            self.rows.append(
                (round(time.monotonic() - self._began, 1), self.phase, self.done, round(resident_mib(), 1))
            )

    def end(self) -> None:
        """Stop the readings."""
        self._stop.set()
        self._thread.join()


def run(config: Config) -> dict:
    """Score, and watch."""
    source, transform = Stripes(config.examples), ToInput(SIZE, SIZE)
    module = Tiny()
    variables = module.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    objective = Objective(Network(module), GaussianNoise(), CosineDistance())
    problem = Problem(variables["params"], {}, resident(source, transform, 1024, 256, 0), objective)
    settings = Scoring(draws=1, batch_size=config.batch)
    scorer = Scorer.fit(problem, LoGra(rank=4), settings)
    watch = Watch(config.every)

    def counted():
        for batch in stream(scorer, source, transform):
            watch.done += batch.table.num_rows
            yield batch

    with (
        tempfile.TemporaryDirectory() as name,
        ScoreStore.open(Path(name), {"examples": config.examples}, len(source)) as store,
    ):
        watch.phase, began = "scoring", time.monotonic()
        for _ in write_parts(store, counted(), len(source), Parts(16_384, 60.0), RunLog(Path(name)), silent):
            pass
        seconds = time.monotonic() - began
        watch.phase, began = "nearest neighbours", time.monotonic()
        distances = store.distances(lambda: neighbours_of(Scoring(), store))
        neighbours = time.monotonic() - began
        watch.phase, began = "table", time.monotonic()
        table = store.finish(None, lambda index: neighbour_columns(distances.of(index)))
        writing, size = time.monotonic() - began, table.stat().st_size
    watch.end()
    scoring = [row for row in watch.rows if row[1] == "scoring"]
    early = [row[3] for row in scoring if row[2] >= config.examples / 10][:5]
    return {
        "seconds": {"scoring": seconds, "nearest neighbours": neighbours, "table": writing},
        "examples per second": config.examples / seconds,
        "table bytes": size,
        "resident MiB after a tenth of the examples": float(np.median(early)),
        "resident MiB at the last of them": scoring[-1][3],
        "resident MiB at most": max(row[3] for row in watch.rows),
        "curve": watch.rows[:: max(1, len(watch.rows) // 300)],
    }


def draw(record: dict, path: Path) -> None:
    """Draw the curve of memory."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for phase in dict.fromkeys(row[1] for row in record["curve"]):
        rows = [row for row in record["curve"] if row[1] == phase]
        axes.plot([row[0] for row in rows], [row[3] for row in rows], label=phase)
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, print, write."""
    config = tyro.cli(Config)
    result = run(config)
    print({name: value for name, value in result.items() if name != "curve"})
    config.out.parent.mkdir(exist_ok=True)
    settings = {**dataclasses.asdict(config), "out": config.out.name}
    record = {"config": settings, "found": result, "versions": versions(), "device": device()}
    config.out.write_text(json.dumps(record) + "\n")
    draw(result, config.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
