"""What must be refused: two runs on one folder, other settings, another source."""

import shutil
import time

from benchmarks.faults.processes import command, ended, started
from benchmarks.faults.rig import Rig, lost_or_repeated, table


def refusals(rig: Rig, fresh: str) -> int:
    """Try what must be refused, and check that scores are unchanged.

    These are two runs at once, other settings, images that are absent, and images that are renamed.
    """
    first = started(command(rig.score("twice")), rig.root / "first.txt")
    deadline = time.monotonic() + 120
    while not (rig.root / "twice" / "identity.json").exists():
        assert time.monotonic() < deadline, (rig.root / "first.txt").read_text()
        time.sleep(0.01)
    status, said = rig.run(command(rig.score("twice")))
    survived = status == 2 and "being written by another run" in said and ended(first) == 0
    rig.note("two runs on one folder", survived and table(rig.root / "twice") == fresh, said=said)

    shutil.copytree(rig.root / "images", rig.root / "fewer")
    (rig.root / "fewer" / "9.png").unlink()
    shutil.copytree(rig.root / "images", rig.root / "renamed")
    shutil.move(rig.root / "renamed" / "9.png", rig.root / "renamed" / "99999.png")
    for fault, arguments, reason in (
        ("other settings", rig.score("twice", "--seed", "5"), "scoring.seed: 0 → 5"),
        ("a source that has shrunk", rig.score("twice", source="fewer"), f"size: {rig.config.images} →"),
        ("a source in another order", rig.score("twice", source="renamed"), "data:"),
    ):
        status, said = rig.run(command(arguments))
        rig.note(fault, status == 2 and reason in said and table(rig.root / "twice") == fresh, said=said)
    return lost_or_repeated(rig.root / "twice", rig.config.images)
