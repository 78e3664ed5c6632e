"""Images per second from a folder, from parquet files and from tar archives: the same 20,000 photographs in each.

    python benchmarks/loading.py

Opening, then every image once in order (as scoring reads), then every image once in random order (as training reads), both
decoded, resized to 32 × 32 and put into batches of 256; then in order with one thread. The files are JPEG of 128 × 128
pixels, in a folder that is removed afterwards, and were just written: they come from the page cache, so this is the
cost of decoding and of the source, not of a disk. Parquet files have row groups of `--group` rows, and fewer bytes are kept
in memory than there are (`--kept-mib`), so that random order shows what a large data set costs. Expected: all three alike
in order; in random order parquet is slower by the share of a row group that is read in vain. The JSON says how many
processes wanted a core meanwhile (`load`).
"""

import dataclasses
import io
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import tyro
from PIL import Image
from pyarrow import parquet

from influence_ssl_jax.data import Folder, OpenSource, Parquet, Shards, Source, ToInput, batches
from influence_ssl_jax.data.loader import decoding_threads
from influence_ssl_jax.provenance import versions

INPUT, BATCH = ToInput(32, 32), 256


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        images: How many.
        random: How many of them are read in random order; all where None.
        pixels: Their height and width.
        files: Parquet files, and tar archives.
        group: Rows of a row group.
        kept_mib: Mebibytes of row groups that are kept in memory.
        out: Where the JSON goes.
    """

    images: int = 20_000
    random: int | None = None
    pixels: int = 128
    files: int = 4
    group: int = 500
    kept_mib: int = 16
    out: Path = Path(__file__).parent / "results" / "loading.json"


def photograph(pixels: int, seed: int) -> bytes:
    """Draw a smooth random picture as a JPEG of some kilobytes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write(folder: Path, config: Config) -> dict[str, Source]:
    """Write the same images in three forms."""
    some = [photograph(config.pixels, seed) for seed in range(200)]
    every = [some[k % len(some)] for k in range(config.images)]
    for name in ("files", "rows", "tars"):
        (folder / name).mkdir()
    for k, content in enumerate(every):
        (folder / "files" / f"{k:06d}.jpg").write_bytes(content)
    for part, numbers in enumerate(np.array_split(np.arange(config.images), config.files)):
        rows = pa.array([{"bytes": every[k], "path": f"{k:06d}.jpg"} for k in numbers])
        parquet.write_table(pa.table({"image": rows}), folder / "rows" / f"{part}.parquet", row_group_size=config.group)
        with tarfile.open(folder / "tars" / f"{part}.tar", "w") as archive:
            for k in numbers:
                member = tarfile.TarInfo(f"{k:06d}.jpg")
                member.size = len(every[k])
                archive.addfile(member, io.BytesIO(every[k]))
    return {
        "folder": Folder(str(folder / "files")),
        "parquet": Parquet(str(folder / "rows"), kept_mib=config.kept_mib),
        "shards": Shards(str(folder / "tars")),
    }


def opened(source: Source) -> tuple[OpenSource, float]:
    """Open a source, and time opening and fingerprint."""
    began = time.perf_counter()
    source_opened = source.open()
    source_opened.fingerprint()
    return source_opened, time.perf_counter() - began


def speed(source: OpenSource, order: np.ndarray, workers: int) -> tuple[float, float]:
    """Measure images per second, and processor time per image."""
    began, busy = time.perf_counter(), time.process_time()
    count = sum(int(each.valid.sum()) for each in batches(source, INPUT, BATCH, jax.random.key(0), order, workers))
    assert count == len(order), f"{count} of {len(order)} images could be used"
    return count / (time.perf_counter() - began), 1000 * (time.process_time() - busy) / count


def main() -> None:
    """Write, read, print, keep."""
    config = tyro.cli(Config)
    threads = decoding_threads()
    seconds_by_kind: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        for kind, source in write(Path(name), config).items():
            order = np.arange(config.images)
            shuffled = np.random.default_rng(0).permutation(config.images)[: config.random]
            first, seconds = opened(source)
            list(batches(first, INPUT, BATCH, jax.random.key(0), order[:BATCH]))  # compiles the keys
            again, later = opened(source)
            seconds_by_kind[kind] = {"seconds to open": seconds, "seconds to open again": later}
            for name, asked, workers in (
                ("in order", order, threads),
                ("in random order", shuffled, threads),
                ("in order, one thread", order, 1),
            ):
                rate, busy = speed(again, asked, workers)
                seconds_by_kind[kind] |= {f"images per second {name}": rate, f"processor ms an image {name}": busy}
            print(kind, {name: round(value, 2) for name, value in seconds_by_kind[kind].items()}, flush=True)
    settings = {**dataclasses.asdict(config), "out": config.out.name}
    load = os.getloadavg()[1]
    record = {
        "config": settings,
        "threads": threads,
        "cores": os.cpu_count(),
        "load": load,
        "found": seconds_by_kind,
        "versions": versions(),
    }
    config.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
