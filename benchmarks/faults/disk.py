"""Disks that take no more: files that may not grow, and a real file system without a free page."""

import ctypes
import json
import math
import os
import subprocess
from pathlib import Path

from benchmarks.faults.processes import Action, command, told
from benchmarks.faults.rig import Rig, lost_or_repeated, table

PAGE = 4096
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS of <sched.h>
SHARES = (0.05, 0.3, 0.6, 0.85, 0.95)
"""Of the space that an undisturbed run takes: how much there is."""


def no_growth(rig: Rig, fresh: str) -> int:
    """Limit the size of files, and continue without the limit."""
    status, said = rig.run(command(rig.score("grown"), limit=5000))
    refused = status == 2 and "File too large" in said and not table(rig.root / "grown")
    status, _ = rig.run(command(rig.score("grown")))
    rig.note("no more bytes can be written", refused and status == 0 and table(rig.root / "grown") == fresh, said=said)
    return lost_or_repeated(rig.root / "grown", rig.config.images)


def full_disks(rig: Rig, fresh: str) -> int:
    """Fill the disk of a run at many sizes, and continue."""
    wrong = 0
    for share in SHARES:
        facts = _filled(rig, f"full{share}", share, rig.root / "fresh", command(rig.score(f"full{share}")))
        same = facts["table"] == fresh
        wrong += facts["wrong"]
        rig.note(
            f"ENOSPC: a disk of {share} of the space",
            _survived(facts) and same,
            said=facts["said"].strip().splitlines()[-1],
        )
    whole = (rig.root / "encoder" / "encoder.npz").read_bytes()
    for share in SHARES:
        out = f"trained{share}"
        facts = _filled(rig, out, share, rig.root / "encoder", told(lambda out=out: rig.train(out)))
        same = facts["encoder"] == whole.hex()
        rig.note(
            f"pretraining: ENOSPC: a disk of {share} of the space",
            _survived(facts) and same,
            said=facts["said"].strip().splitlines()[-1],
        )
    return wrong


def _last(facts: dict) -> str:
    return facts["said"].strip().splitlines()[-1]


def _survived(facts: dict) -> bool:
    named = "The disk of " in facts["said"] and "cannot take more data: No space left on device" in facts["said"]
    return facts["refused"] == 2 and named and not facts["early"] and facts["status"] == 0


def _filled(rig: Rig, out: str, share: float, like: Path, action: Action) -> dict:
    """Run on a small disk, then on a larger one."""
    folder, told_by = rig.root / out, rig.root / "facts.json"
    pages = sum(math.ceil(file.stat().st_size / PAGE) for file in like.rglob("*") if file.is_file())
    folder.mkdir()

    def on_a_disk_of_its_own() -> int:
        _own_mounts()
        _mount(f"size={max(1, int(share * pages)) * PAGE}", folder)
        refused, said = rig.run(action)
        early = table(folder) or (folder / "encoder.json").exists()
        _mount("remount,size=256m", folder)
        status, later = rig.run(action)
        scored = bool(table(folder))
        encoder = folder / "encoder.npz"
        facts = {
            "refused": refused,
            "said": said,
            "early": bool(early),
            "status": status,
            "later": later,
            "table": table(folder),
            "wrong": lost_or_repeated(folder, rig.config.images) if scored else 0,
            "encoder": encoder.read_bytes().hex() if encoder.exists() else "",
        }
        told_by.write_text(json.dumps(facts))
        return 0

    status, said = rig.run(on_a_disk_of_its_own, "apart.txt")
    assert status == 0, said
    return json.loads(told_by.read_text())


def _own_mounts() -> None:
    """Give this process mounts that only it and its children see."""
    user, group = os.getuid(), os.getgid()
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "this system lets no process have mounts of its own; leave out --faults disk")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=60)
