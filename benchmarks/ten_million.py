"""Do store, table, report and audit keep their memory, however many rows there are?

    python -m benchmarks.ten_million
    python -m benchmarks.ten_million --rows 1000000

Values are drawn in place of scored images: no network, no pixels, everything else as in a run. Each stage is a process of
its own, so that its peak memory is its own: `store` appends parts of 16,384 rows with their embeddings; `finish` searches
nearest neighbours and writes table and record; `report` renders the page; `audit` reads the table as an audit does, judges
the scores by drawn certificates of 500 rows and writes a calibrated score for every row. Every stage is run at two numbers
of rows: the difference of their peaks, over that of the rows, is what a row costs. Expected: some tens of bytes per row, and
minutes.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import tyro

from influence_ssl_jax.configuration import Plain
from influence_ssl_jax.evaluation.calibration import Calibration
from influence_ssl_jax.evaluation.certificate import Audit
from influence_ssl_jax.evaluation.sample import sample
from influence_ssl_jax.progress import silent
from influence_ssl_jax.provenance import device, versions
from influence_ssl_jax.report.render import render
from influence_ssl_jax.report.scored_run import ScoredFile
from influence_ssl_jax.runs import audit
from influence_ssl_jax.runs.score import count_known, count_searched, neighbours_of
from influence_ssl_jax.scoring.scores import Scoring
from influence_ssl_jax.scoring.table import IN_CURVATURE_SET, neighbour_columns
from influence_ssl_jax.store import ScoreStore

STAGES = ("store", "finish", "report", "audit")
PART, WIDTH, AUDITED = 16_384, 8, 500
Stage = Literal["", "store", "finish", "report", "audit"]


@dataclasses.dataclass(frozen=True)
class Config:
    """How many.

    Attributes:
        rows: Numbers of rows, ascending.
        stage: Set in the process of one stage.
        folder: Where its run is.
        out: Where the JSON goes.
    """

    rows: tuple[int, ...] = (1_000_000, 10_000_000)
    stage: Stage = ""
    folder: Path = Path()
    out: Path = Path(__file__).parent / "results" / "ten_million.json"


def drawn(start: int, count: int) -> pa.Table:
    """Draw rows like those of scoring.

    Scores are log-normal, baselines follow them, and one row in ten thousand has a remark.
    """
    rng = np.random.default_rng(start)
    latent = rng.normal(size=count)
    index = np.arange(start, start + count)

    def near(noise: float) -> np.ndarray:
        return np.exp(latent + noise * rng.normal(size=count))

    embedding = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return pa.table(
        {
            "index": index,
            "id": pa.array([f"{number:08d}.png" for number in index]),
            "score": np.exp(latent),
            "score_se": 0.1 * np.exp(latent),
            "alignment_loss": near(0.3),
            "gradient_norm": near(0.5),
            "pixel_variance": near(2.0),
            "reason": pa.array(["unconverged solve" if number % 10_000 == 7 else "" for number in index], pa.string()),
            "content": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), count, [None, pa.py_buffer(rng.bytes(16 * count))]
            ),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), WIDTH),
        }
    )


def opened(folder: Path, rows: int) -> ScoreStore:
    """Open the store of drawn rows."""
    store = ScoreStore.open(folder, {"drawn": "ten_million"}, rows)
    store.bind("drawn")
    return store


def fill(folder: Path, rows: int) -> None:
    """Append every row."""
    with opened(folder, rows) as store:
        for start in range(0, rows, PART):
            store.append(drawn(start, min(PART, rows - start)))


def finish(folder: Path, rows: int) -> None:
    """Search neighbours and write the table."""
    with opened(folder, rows) as store:
        distances = store.distances(lambda: neighbours_of(Scoring(), store))
        known, _ = count_known(distances, store)
        inside = np.random.default_rng(0).choice(rows, 1024, replace=False)
        labels = pa.table(
            {"label": pa.array(np.resize(np.arange(10, dtype=np.int8), rows))}
        )  # the source's: a byte a row

        def further(index: np.ndarray) -> dict[str, np.ndarray]:
            return {**neighbour_columns(distances.of(index)), IN_CURVATURE_SET: np.isin(index, inside)}

        facts: dict[str, Plain] = {"nearest_neighbours": count_searched(known, 1), "damping": {"resolved": 0.1}}
        store.finish(labels, further, facts)
        distances.delete()


def judge(folder: Path, rows: int) -> None:
    """Run an audit with drawn certificates."""
    scored = ScoredFile.open(folder)
    chosen = np.sort(sample(Audit(examples=AUDITED), rows, audit.find_left_out(scored)))
    score = scored.read_rows(chosen, ["score"])["score"].to_numpy()
    exact = score**0.9 * np.exp(0.05 * np.random.default_rng(1).normal(size=len(chosen)))
    bounds = pa.table({"index": chosen, "lower": 0.99 * exact, "upper": 1.01 * exact})
    deviations = audit.compare_with_bounds(scored, bounds, Calibration())
    assert deviations["score"].examples == len(chosen)
    assert audit.calibrate(folder, scored, bounds, None, Calibration(), silent)


def work(config: Config) -> None:
    """Run one stage, and print its seconds and memory as JSON."""
    (rows,) = config.rows
    before, began = peak(), time.monotonic()
    stages = {"store": fill, "finish": finish, "report": lambda folder, _: render(folder), "audit": judge}
    stages[config.stage](config.folder, rows)
    print(json.dumps({"seconds": time.monotonic() - began, "MiB before": before, "MiB at most": peak()}))


def peak() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int) -> dict[str, dict[str, float]]:
    """Measure every stage over so many rows, in separate processes."""
    stages = {}
    with tempfile.TemporaryDirectory() as name:
        for stage in STAGES:
            arguments = ["--rows", str(rows), "--stage", stage, "--folder", name]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.ten_million", *arguments],
                stdout=subprocess.PIPE,
                check=True,
                timeout=7200,
            )
            stages[stage] = json.loads(done.stdout.splitlines()[-1])
            print(rows, stage, stages[stage], flush=True)
        stages["table"] = {"MiB": (Path(name) / "scores.parquet").stat().st_size / 2**20}
        stages["parts"] = {"MiB": sum(file.stat().st_size for file in Path(name).glob("parts/*/*.parquet")) / 2**20}
        stages["page"] = {"MiB": (Path(name) / "report.html").stat().st_size / 2**20}
    return stages


def main() -> None:
    """Measure, print, add to the file."""
    config = tyro.cli(Config)
    if config.stage:
        return work(config)
    held = json.loads(config.out.read_text())["rows"] if config.out.exists() else {}
    measured = {int(rows): stages for rows, stages in held.items()} | {rows: measure(rows) for rows in config.rows}
    few, many = min(measured), max(measured)
    growth = {
        stage: 2**20 * (measured[many][stage]["MiB at most"] - measured[few][stage]["MiB at most"]) / max(1, many - few)
        for stage in STAGES
    }
    print("bytes a row:", {stage: round(value, 1) for stage, value in growth.items()})
    record = {"rows": measured, "bytes a row": growth, "versions": versions(), "device": device()}
    config.out.write_text(json.dumps(record, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
