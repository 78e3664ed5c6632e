"""Files cut short, flipped by a bit or deleted."""

from pathlib import Path

from benchmarks.faults.processes import command
from benchmarks.faults.rig import Rig, lost_or_repeated, table


def damages(rig: Rig, fresh: str) -> int:
    """Damage files of a killed run, and continue it."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[rig.random.randrange(len(content))] ^= 1 << rig.random.randrange(8)
        path.write_bytes(bytes(content))

    ways = {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[: rig.random.randrange(path.stat().st_size)]),
        "flipped by a bit": flip,
        "deleted": lambda path: path.unlink(),
    }
    names = ("parts/0000/*.parquet", "parts/0000/*.arrow", "parts/0000/manifest.jsonl", "fitted.npz", "fitted.json")
    status, said = rig.run(command(rig.score("damaged")))
    assert status == 0, said
    wrong = 0
    for name in names:
        for way, damage in ways.items():
            damage(sorted((rig.root / "damaged").glob(name))[0])
            (rig.root / "damaged" / "scores.parquet").unlink(missing_ok=True)
            (rig.root / "damaged" / "run.json").unlink(missing_ok=True)
            status, _ = rig.run(command(rig.score("damaged")))
            wrong += lost_or_repeated(rig.root / "damaged", rig.config.images)
            rig.note(f"{name} {way}", status == 0 and table(rig.root / "damaged") == fresh)
    return wrong
