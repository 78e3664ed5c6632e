"""Is every entry of a strange folder, row of a strange table and class of a strange column used, named or refused?

    python -m benchmarks.faults.entries

Random folders of images among links that lead nowhere or to themselves, pipes, devices, folders with the name of an
image, names that are not UTF-8 or hold escape sequences, damaged files and files that vanish after the listing; random
tables with columns of one name, without a name, in another encoding, with quoted newlines, with names as bytes, or of
another data set; random columns of classes of every type with missing values. What came out is compared with what was
put in. Seconds. Expected: nothing lost (neither read nor named), nothing silently other than it was.
"""

import collections
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro
from PIL import Image
from pyarrow import parquet

from influence_ssl_jax.data import Folder
from influence_ssl_jax.data.attributes import number_classes
from influence_ssl_jax.data.examples import Skipped
from influence_ssl_jax.errors import DataError, printable

READ, NAMED = "read", "named"


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is tried.

    Attributes:
        tries: Random cases of each kind.
        out: Where the JSON goes.
    """

    tries: int = 200
    out: Path = Path(__file__).parents[1] / "results" / "fault_entries.json"


def picture(level: int) -> bytes:
    """Return a small PNG of one grey level."""
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _image(place: bytes) -> str:
    Path(os.fsdecode(place)).write_bytes(picture(len(place) % 256))
    return READ


def _damaged(place: bytes) -> str:
    Path(os.fsdecode(place)).write_bytes(picture(0)[:45])
    return NAMED


def _nowhere(place: bytes) -> str:
    os.symlink(b"nowhere", place)
    return NAMED


def _itself(place: bytes) -> str:
    os.symlink(os.path.basename(place), place)
    return NAMED


def _pipe(place: bytes) -> str:
    os.mkfifo(place)
    return NAMED


def _device(place: bytes) -> str:
    os.symlink(b"/dev/zero", place)
    return NAMED


ENTRIES: tuple[Callable[[bytes], str], ...] = (_image, _image, _damaged, _nowhere, _itself, _pipe, _device)
NAMES = (b"%d.png", b"sub/%d.jpg", b"\xff%d.png", b"\x1b[31m%d.png", b"caf\xc3\xa9 %d.png", b"dir.png/%d.png")


def folders(rng: np.random.Generator, counts: collections.Counter[str]) -> None:
    """Check that every entry of a random folder is read or named."""
    with tempfile.TemporaryDirectory() as name:
        root = os.fsencode(name)
        for folder in (b"sub", b"dir.png"):
            os.mkdir(os.path.join(root, folder))
        expected = {}
        for number in range(12):
            relative = NAMES[rng.integers(len(NAMES))] % number
            outcome = ENTRIES[0 if number == 0 else rng.integers(len(ENTRIES))](os.path.join(root, relative))
            expected[relative] = outcome
        links = "follow" if rng.integers(2) else "skip"
        opened = Folder(name, links=links).open()
        opened.fingerprint()
        gone = [key for key, outcome in expected.items() if outcome == READ and rng.random() < 0.2]
        for relative in gone:
            os.unlink(os.path.join(root, relative))
            expected[relative] = NAMED
        came = {each.id: NAMED if isinstance(each, Skipped) else READ for each in opened.read_many(range(len(opened)))}
        for relative, outcome in expected.items():
            seen = came.pop(printable(os.fsdecode(relative)), "lost")
            counts["as put in" if seen == outcome else seen] += 1
        counts["from nowhere"] += len(came)


def tables(rng: np.random.Generator, counts: collections.Counter[str]) -> None:
    """Check that rows of a random table reach their images.

    A table that cannot be used is refused.
    """
    count = int(rng.integers(3, 30))
    names, ages = [f"{k}.png" for k in range(count)], rng.integers(0, 99, count).tolist()
    order = rng.permutation(count).tolist()
    kind = ("plain", "twice", "nameless", "latin", "newlines", "bytes", "foreign")[rng.integers(7)]
    with tempfile.TemporaryDirectory() as name:
        for file in names:
            (Path(name) / file).write_bytes(picture(7))
        path = Path(name) / ("t.parquet" if kind == "bytes" else "t.csv")
        if kind == "bytes":
            rows = {"file": [names[k].encode() for k in order], "age": [ages[k] for k in order]}
            parquet.write_table(pa.table(rows), path)
        else:
            head = {"twice": "file,age,age", "nameless": ",file,age"}.get(kind, "file,age,note")
            note = '"two\nlines"' if kind == "newlines" else "Ren\xe9" if kind == "latin" and rng.integers(2) else "x"
            lines = [f"0,{names[k]},{ages[k]}" if kind == "nameless" else f"{names[k]},{ages[k]},{note}" for k in order]
            lines = [f"other{line}" if kind == "foreign" else line for line in lines]
            path.write_bytes("\n".join([head, *lines, ""]).encode("latin-1"))
        refused = kind in ("twice", "nameless", "foreign") or (kind == "latin" and "\xe9" in note)
        try:
            came = Folder(name, str(path)).open().attributes()
        except DataError:
            counts["as put in" if refused else "refused without need"] += 1
            return
        right = came is not None and came["age"].to_pylist() == ages
        counts["as put in" if right and not refused else "silently other"] += 1


def labels(rng: np.random.Generator, counts: collections.Counter[str]) -> None:
    """Check that a random column of classes is numbered correctly.

    Classes are numbered as NumPy numbers the values, missing ones are −1.
    """
    count = int(rng.integers(2, 40))
    drawn = rng.integers(0, 4, count)
    kinds = {
        "large": np.array([-(2**40), 3, 2**31, 2**62])[drawn].tolist(),
        "signs": np.array([-1, 1, -1, 1])[drawn].tolist(),
        "floats": np.array([0.5, -1.0, 2.0, np.nan])[drawn].tolist(),
        "text": np.array(["b", "", "a", "c"])[drawn].tolist(),
        "truth": np.array([True, False, True, False])[drawn].tolist(),
        "lists": [[int(k)] for k in drawn],
    }
    kind = list(kinds)[rng.integers(len(kinds))]
    values = [None if rng.random() < 0.2 else value for value in kinds[kind]]
    missing = [value is None or value == "" or value != value for value in values]
    refused = all(missing) or kind == "lists"
    try:
        came = number_classes(pa.chunked_array([pa.array(values)]), "The column").labels.tolist()
    except DataError:
        counts["as put in" if refused else "refused without need"] += 1
        return
    known = sorted({value for value, no in zip(values, missing, strict=True) if not no})
    expected = [-1 if no else known.index(value) for value, no in zip(values, missing, strict=True)]
    counts["as put in" if came == expected and not refused else "silently other"] += 1


def main() -> None:
    """Try, print, keep; the exit status says whether everything was as it was put in."""
    config = tyro.cli(Config)
    record = {}
    for kind in (folders, tables, labels):
        counts: collections.Counter[str] = collections.Counter()
        for seed in range(config.tries):
            kind(np.random.default_rng(seed), counts)
        lost = sum(counts.values()) - counts["as put in"]
        record[kind.__name__] = {"tries": sum(counts.values()), "lost or silently other": lost, **counts}
        print(kind.__name__, record[kind.__name__], flush=True)
    config.out.write_text(json.dumps({"tries": config.tries, **record}, indent=1) + "\n")
    raise SystemExit(any(each["lost or silently other"] for each in record.values()))


if __name__ == "__main__":
    main()
