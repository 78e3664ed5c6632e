"""Send SIGKILL to runs at random moments, until each run completes."""

import shutil

from benchmarks.faults.processes import command, killed_until_through
from benchmarks.faults.rig import Rig, lost_or_repeated, table


def kills(rig: Rig, fresh: str, seconds: float) -> int:
    """Kill runs of scores at random moments; count wrong examples."""
    total = wrong = runs = 0
    given = (rig.root / "said.txt", rig.random, seconds, rig.config.at_most)
    while total < rig.config.kills:
        out, runs = f"killed{runs}", runs + 1
        suffered = killed_until_through(command(rig.score(out)), *given)
        wrong += lost_or_repeated(rig.root / out, rig.config.images)
        total += suffered
        rig.note(f"SIGKILL {suffered} times, then through", table(rig.root / out) == fresh, kills=suffered)
        shutil.rmtree(rig.root / out)
    return wrong


def training_kills(rig: Rig, seconds: float) -> None:
    """Pretraining killed at random moments: the encoder that it would have made."""
    given = (rig.root / "said.txt", rig.random, seconds, rig.config.at_most)
    whole, total, runs = (rig.root / "encoder" / "encoder.npz").read_bytes(), 0, 0
    while total < rig.config.training_kills:
        out, runs = f"training{runs}", runs + 1
        suffered = killed_until_through(lambda out=out: rig.train(out), *given)
        total += suffered
        same = (rig.root / out / "encoder.npz").read_bytes() == whole
        rig.note(f"pretraining: SIGKILL {suffered} times, then through", same, kills=suffered)
