"""The same labelled images as parquet files and as tar archives."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

NAMES = ("bird", "cat", "dog")


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder: pathlib.Path, count: int = 10, group: int = 3, files: int = 2, broken: int = -1) -> None:
    """Two files of Hugging Face's layout; the image `broken` is cut short."""
    names = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", kind), ("label", pa.int64()), ("age", pa.float64()), ("boxes", pa.list_(pa.int64()))],
        metadata={"huggingface": json.dumps({"info": {"features": names}})},
    )
    folder.mkdir(exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(count), files)):
        table = pa.table(
            {
                "image": [
                    {"bytes": encoded(k)[:70] if k == broken else encoded(k), "path": f"{k}.png"}
                    for k in numbers.tolist()
                ],
                "label": [k % 3 if k else -1 for k in numbers.tolist()],
                "age": [float(k) for k in numbers],
                "boxes": [[1, 2]] * len(numbers),
            },
            schema,
        )
        parquet.write_table(table, folder / f"train-{part:05d}.parquet", row_group_size=group, compression="none")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(folder: pathlib.Path, count: int = 10, files: int = 2, broken: int = -1) -> None:
    """Two archives of WebDataset's layout; the image `broken` is cut short."""
    folder.mkdir(exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(count), files)):
        with tarfile.open(folder / f"train-{part:03d}.tar", "w") as archive:
            for k in numbers.tolist():
                add(archive, f"{k:04d}.png", encoded(k)[:70] if k == broken else encoded(k))
                add(archive, f"{k:04d}.cls", str(k % 3).encode())
                add(archive, f"{k:04d}.json", json.dumps({"age": k, "tags": ["a"], "indoors": k % 2 == 0}).encode())
