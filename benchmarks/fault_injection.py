"""Does a scoring run survive everything that a scheduler, a disk and a hurried user can do to it?

    python -m benchmarks.fault_injection
    python -m benchmarks.fault_injection --faults disk
    python -m benchmarks.fault_injection --faults images products states stops

The command line runs in processes of its own, on a small network and a folder of images. The faults are:

- SIGKILL at random moments, and Ctrl-C, SIGTERM and SIGHUP, each time continued until the run completes;
- files that may not grow, and file systems that are full, at many sizes;
- parts, their list or the fitted curvature truncated, changed by a bit, or deleted between two runs;
- two runs at once, and a run with other settings;
- images removed, renamed, swapped, or replaced by others of the same size; an audit with another encoder;
- parts, a table or training states of another run; random bits of finished files changed; state files with wrong content.

After each of them the table must have the bytes of an undisturbed run's, or the command must refuse with a reason and not
change the scores.
About ten minutes on two cores. Expected: 0 examples lost or repeated.
"""

import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import tyro

from benchmarks.faults.damage import damages
from benchmarks.faults.disk import full_disks, no_growth
from benchmarks.faults.images import images
from benchmarks.faults.kills import kills, training_kills
from benchmarks.faults.processes import command
from benchmarks.faults.products import products
from benchmarks.faults.refusals import refusals
from benchmarks.faults.rig import Config, Rig, table
from benchmarks.faults.states import states
from benchmarks.faults.stops import stops


def undisturbed(rig: Rig) -> tuple[str, float, float]:
    """Make an encoder and a run over it, twice where it is timed; the table's hash, seconds of training and of scoring."""
    training = scoring = 0.0
    for out in ("encoder", "warm") if rig.config.training_kills else ("encoder",):  # the first compiles
        began = time.monotonic()
        status, said = rig.run(lambda out=out: rig.train(out))
        assert status == 0, said
        training = time.monotonic() - began
    for out in ("cold", "fresh"):
        began = time.monotonic()
        status, said = rig.run(command(rig.score(out)))
        assert status == 0, said
        scoring = time.monotonic() - began
    fresh = table(rig.root / "fresh")
    rig.note("two undisturbed runs are the same bytes", table(rig.root / "cold") == fresh)
    return fresh, training, scoring


def run(config: Config) -> dict:
    """Run everything that is requested, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(name) / "cache"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        rig, lost = Rig(Path(name) / "rig", config), 0
        fresh, training, scoring = undisturbed(rig)
        if "kills" in config.faults:
            training_kills(rig, training)
            lost += kills(rig, fresh, scoring)
        if "damage" in config.faults:
            lost += damages(rig, fresh)
        if "disk" in config.faults:
            lost += no_growth(rig, fresh) + full_disks(rig, fresh)
        if "refusals" in config.faults:
            lost += refusals(rig, fresh)
        if "images" in config.faults:
            lost += images(rig, fresh)
        if "products" in config.faults:
            lost += products(rig, fresh)
        if "states" in config.faults:
            lost += states(rig, fresh)
        if "stops" in config.faults:
            lost += stops(rig, fresh, scoring)
        killed = sum(int(line.get("kills", 0)) for line in rig.log)
        return {
            "kills": killed,
            "stops": sum(int(line.get("stops", 0)) for line in rig.log),
            "bits flipped in finished files": sum(int(line.get("tries", 0)) for line in rig.log),
            "silently other": sum(int(line.get("silently other", 0)) for line in rig.log),
            "faults tried": len(rig.log),
            "faults survived": sum(line["survived"] for line in rig.log),
            "examples lost or repeated": lost,
            "log": rig.log,
        }


def main() -> None:
    """Inject, print, add the record to the file; the exit status says whether all was survived."""
    config = tyro.cli(Config)
    record = run(config)
    words = ["python", "-m", "benchmarks.fault_injection", *sys.argv[1:]]
    made = {"command": shlex.join(words), "config": {**dataclasses.asdict(config), "out": config.out.name}}
    records = json.loads(config.out.read_text()) if config.out.exists() else []
    config.out.parent.mkdir(exist_ok=True)
    config.out.write_text(json.dumps([*records, {**made, **record}], indent=1) + "\n")
    print({name: value for name, value in record.items() if name != "log"})
    raise SystemExit(record["faults tried"] != record["faults survived"] or record["examples lost or repeated"] != 0)


if __name__ == "__main__":
    main()
