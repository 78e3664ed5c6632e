"""Finished files with a flipped bit, one at a time and many times: noticed by every reader, or nothing has changed."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.faults.processes import command
from benchmarks.faults.rig import Rig, lost_or_repeated, table
from influence_ssl_jax import checkpoint
from influence_ssl_jax.errors import InfluenceError
from influence_ssl_jax.report.scored_run import ScoredRun
from influence_ssl_jax.train import export


def products(rig: Rig, fresh: str) -> int:
    """Flip bits of finished files; damage and delete table and record.

    Table and record are then made again from the parts.
    """
    status, said = rig.run(command(rig.score("product")))
    assert status == 0, said
    folder = rig.root / "product"

    def scores() -> Any:
        run = ScoredRun.load(folder)
        return run.record, run.table.to_pydict()

    def network() -> Any:
        path = rig.root / "encoder" / "encoder"
        return jax.device_get(checkpoint.load(path, _like(path))), checkpoint.describe(path)

    for file, read in (
        (folder / "scores.parquet", scores),
        (folder / "run.json", scores),
        (rig.root / "encoder" / "encoder.json", network),
        (rig.root / "encoder" / "encoder.npz", network),
    ):
        _flips(rig, file, read)
    for name in ("scores.parquet", "run.json"):
        for way in ("flipped by a bit", "deleted"):
            if way == "deleted":
                (folder / name).unlink()
            else:
                flip(rig, folder / name)
            status, _ = rig.run(command(rig.score("product")))
            rig.note(f"{name} {way}, the same command", status == 0 and table(folder) == fresh)
    return lost_or_repeated(folder, rig.config.images)


def flip(rig: Rig, file: Path) -> None:
    """Flip one random bit of a file."""
    content = bytearray(file.read_bytes())
    content[rig.random.randrange(len(content))] ^= 1 << rig.random.randrange(8)
    file.write_bytes(content)


@functools.cache
def _like(path: Path) -> Any:
    """Return the arrays of the encoder as it was before any fault."""
    trained = export.load(path)
    return {"params": trained.params, "frozen": trained.frozen}


def _flips(rig: Rig, file: Path, read: Callable[[], Any]) -> None:
    """Flip bits of a file, one at a time, in a process of its own."""

    def count() -> None:
        whole, before = file.read_bytes(), repr(read())
        noticed = unchanged = other = 0
        for _ in range(rig.config.flips):
            flip(rig, file)
            try:
                same = repr(read()) == before
                unchanged, other = unchanged + same, other + (not same)
            except InfluenceError:
                noticed += 1
            file.write_bytes(whole)
        counts = {"tries": rig.config.flips, "noticed": noticed, "of no meaning": unchanged, "silently other": other}
        print(json.dumps(counts), flush=True)

    status, said = rig.run(count)
    assert status == 0, said
    counts = json.loads(said.splitlines()[-1])
    whole = counts["noticed"] + counts["of no meaning"] == rig.config.flips
    rig.note(f"{file.name}: a flipped bit", counts["silently other"] == 0 and whole, **counts)
