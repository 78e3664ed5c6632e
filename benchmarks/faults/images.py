"""Images, encoders and parts that are not those of the run: named and refused by every later step."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults.processes import command
from benchmarks.faults.rig import SIZE, Rig, lost_or_repeated, table

CHANGED = "have changed since they were scored"


def _bitmaps(rig: Rig, folder: str) -> Path:
    """Write the images of the rig as bitmaps of one file size."""
    (rig.root / folder).mkdir()
    draw = np.random.default_rng(rig.config.seed)
    for number in range(rig.config.images):
        pixels = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(rig.root / folder / f"{number}.bmp")
    return rig.root / folder


def _overwritten(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-16] + bytes(255 - byte for byte in content[-16:]))


def _swapped(folder: Path) -> None:
    first, second = (folder / f"{number}.bmp" for number in (3, 4))
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def _touched(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, (0, 0))


def images(rig: Rig, _: str) -> int:
    """Change images, encoder and parts of a finished run."""
    wrong = 0
    _bitmaps(rig, "bitmaps")
    status, said = rig.run(command(rig.score("bitmapped", source="bitmaps")))
    assert status == 0, said
    fresh = table(rig.root / "bitmapped")
    audit = ["audit", str(rig.root / "bitmapped"), "--examples", str(rig.config.images), "--steps", "4"]
    for fault, change, refused in (
        ("overwritten", _overwritten, 2),
        ("swapped", _swapped, 2),
        ("touched", _touched, 0),
    ):
        shutil.copytree(rig.root / "bitmaps", rig.root / "kept")
        change(rig.root / "bitmaps")
        status, said = rig.run(command(rig.score("bitmapped", source="bitmaps")))
        named = (CHANGED in said and ".bmp" in said) or not refused
        same = table(rig.root / "bitmapped") == fresh
        rig.note(f"images {fault}, the same command", status == refused and named and same, said=said[:200])
        if refused:
            status, said = rig.run(command(audit))
            rig.note(f"images {fault}, audit", status == 2 and CHANGED in said, said=said[:200])
        shutil.rmtree(rig.root / "bitmaps")
        shutil.move(rig.root / "kept", rig.root / "bitmaps")
    wrong += lost_or_repeated(rig.root / "bitmapped", rig.config.images)
    return wrong + _other_encoder(rig, audit) + _parts_of_another_run(rig)


def _other_encoder(rig: Rig, audit: list[str]) -> int:
    """Replace the encoder by another one of the same architecture."""
    shutil.copytree(rig.root / "encoder", rig.root / "the encoder")
    status, said = rig.run(lambda: rig.train("another", seed=1))
    assert status == 0, said
    for name in ("encoder.npz", "encoder.json"):
        shutil.copy(rig.root / "another" / name, rig.root / "encoder" / name)
    status, said = rig.run(command(audit))
    left = (rig.root / "bitmapped" / "calibrated.parquet").exists()
    rig.note("another encoder, audit", status == 2 and "encoder: " in said and not left, said=said[:300])
    status, said = rig.run(command(rig.score("bitmapped", source="bitmaps")))
    rig.note("another encoder, the same command", status == 2 and "encoder: " in said, said=said[:300])
    shutil.rmtree(rig.root / "encoder")
    shutil.move(rig.root / "the encoder", rig.root / "encoder")
    return 0


def _parts_of_another_run(rig: Rig) -> int:
    """Put parts, table and record of another run into a folder."""
    status, said = rig.run(command(rig.score("three", "--draws", "3")))
    assert status == 0, said
    fresh = table(rig.root / "three")
    shutil.rmtree(rig.root / "three" / "parts" / "0000")
    for name in ("scores.parquet", "run.json"):
        (rig.root / "three" / name).unlink()
    shutil.copytree(rig.root / "fresh" / "parts" / "0000", rig.root / "three" / "parts" / "0000")
    status, said = rig.run(command(rig.score("three", "--draws", "3")))
    refused = status == 2 and "parts of another run" in said and not table(rig.root / "three")
    shutil.rmtree(rig.root / "three" / "parts" / "0000")
    status, _ = rig.run(command(rig.score("three", "--draws", "3")))
    rig.note("parts of another run", refused and status == 0 and table(rig.root / "three") == fresh, said=said[:300])
    for name in ("scores.parquet", "run.json"):
        shutil.copy(rig.root / "fresh" / name, rig.root / "three" / name)
    status, _ = rig.run(command(rig.score("three", "--draws", "3")))
    rig.note("table and record of another run, the same command", status == 0 and table(rig.root / "three") == fresh)
    return lost_or_repeated(rig.root / "three", rig.config.images)
