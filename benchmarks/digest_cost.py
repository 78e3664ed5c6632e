"""What the digest of an image's bytes costs beside decoding it, and what comparing a scored set again costs.

    python -m benchmarks.digest_cost

For photographs of several sizes as JPEG and PNG: seconds of one thread to decode the file and to hash its bytes, the median
over repeats. The record is added to `benchmarks/results/digest_cost.json`.
"""

import dataclasses
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from influence_ssl_jax.data.encoded import decode
from influence_ssl_jax.data.examples import content_digest


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        sides: Heights and widths of the images, in pixels.
        repeats: Measurements of each.
        seed: Of the images.
        out: The file that the record is added to.
    """

    sides: tuple[int, ...] = (32, 224, 1024)
    repeats: int = 15
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "digest_cost.json"


def photograph(side: int, seed: int) -> Image.Image:
    """Return smooth colours with a little noise, which compress like photographs."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((smooth + draw.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the median time of an action."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Measure, print, add the record to the file."""
    config, rows = tyro.cli(Config), []
    for side in config.sides:
        for kind in ("JPEG", "PNG"):
            buffer = io.BytesIO()
            photograph(side, config.seed).save(buffer, kind)
            stored = buffer.getvalue()
            decoding = seconds(lambda stored=stored: decode(stored), config.repeats)
            hashing = seconds(lambda stored=stored: content_digest(stored), config.repeats)
            row = {
                "kind": kind,
                "side": side,
                "bytes": len(stored),
                "decode_us": 1e6 * decoding,
                "digest_us": 1e6 * hashing,
            }
            rows.append({**row, "share": hashing / decoding})
            times = f"decoding {1e6 * decoding:9.1f} µs, digest {1e6 * hashing:7.1f} µs"
            print(f"{kind:4} {side:5} {len(stored):9,} bytes: {times}")
    plain = {**dataclasses.asdict(config), "out": config.out.name}
    records = json.loads(config.out.read_text()) if config.out.exists() else []
    made = {"command": "python -m benchmarks.digest_cost", "config": plain, "rows": rows}
    config.out.write_text(json.dumps([*records, made], indent=1) + "\n")


if __name__ == "__main__":
    main()
