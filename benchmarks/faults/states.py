"""Replace the files from which a run continues by wrong ones: the run ignores them, or ends with one clear error."""

import json
import shutil

from benchmarks.faults.processes import command, told
from benchmarks.faults.rig import Rig, lost_or_repeated, table
from influence_ssl_jax.store import read_sealed, write_sealed
from influence_ssl_jax.train import export

DEEP = "[" * 100_000
CONTENTS = ("null", DEEP)


def states(rig: Rig, fresh: str) -> int:
    """Replace every state file by every wrong content, and continue."""
    status, said = rig.run(command(rig.score("stated")))
    assert status == 0, said
    folder = rig.root / "stated"
    for name, refused in (
        ("fitted.json", False),
        ("log.jsonl", False),
        ("identity.json", True),
    ):
        whole = (folder / name).read_bytes()
        for content in CONTENTS:
            (folder / name).write_text(content)
            for product in ("scores.parquet", "run.json"):
                (folder / product).unlink(missing_ok=True)
            status, said = rig.run(command(rig.score("stated")))
            clear = "Traceback" not in said
            survived = status == 2 and "is damaged" in said if refused else status == 0 and table(folder) == fresh
            rig.note(f"{name} holds {content[:10]!r}", survived and clear, said=said[-200:] if refused else "")
            if refused:
                (folder / name).write_bytes(whole)
                rig.run(command(rig.score("stated")))
    return lost_or_repeated(folder, rig.config.images) + _training(rig) + _encoder(rig)


def _training(rig: Rig) -> int:
    """Damage and replace the states, settings and journal of pretraining."""
    whole = (rig.root / "encoder" / "encoder.npz").read_bytes()
    action = told(lambda: rig.train("states"))
    status, said = rig.run(action)
    assert status == 0, said
    folder = rig.root / "states"

    def newest() -> tuple[int, int]:
        steps = sorted(int(each.name) for each in (folder / "checkpoints").iterdir() if each.name.isdecimal())
        return steps[-1], steps[-2]

    def damaged() -> None:
        files = [file for file in (folder / "checkpoints" / str(newest()[0])).rglob("*") if file.is_file()]
        for file in files:
            content = bytearray(file.read_bytes())
            if content:
                content[rig.random.randrange(len(content))] ^= 1 << rig.random.randrange(8)
                file.write_bytes(content)

    def replaced() -> None:
        last, before = newest()
        shutil.rmtree(folder / "checkpoints" / str(last))
        shutil.copytree(folder / "checkpoints" / str(before), folder / "checkpoints" / str(last))

    def other() -> None:
        rig.train("other", seed=1)
        shutil.rmtree(folder / "checkpoints")
        shutil.copytree(rig.root / "other" / "checkpoints", folder / "checkpoints")
        shutil.copy(rig.root / "other" / "checkpoints.json", folder / "checkpoints.json")

    for fault, damage in (
        ("the newest state flipped", damaged),
        ("the newest state replaced by the one before", replaced),
        ("the states of another run", other),
        ("checkpoints.json holds null", lambda: (folder / "checkpoints.json").write_text("null")),
        ("metrics.jsonl holds null", lambda: (folder / "metrics.jsonl").write_text("null\n[]\n" + DEEP)),
    ):
        (folder / "encoder.npz").unlink()
        rig.run(told(damage))  # in a process of its own, as every use of JAX
        status, said = rig.run(action)
        same = (folder / "encoder.npz").exists() and (folder / "encoder.npz").read_bytes() == whole
        rig.note(f"pretraining: {fault}", status == 0 and same, said=said[-200:] if status else "")
    held = (folder / "settings.json").read_bytes()
    for content in ("null", held[: len(held) // 2].decode(), DEEP):
        (folder / "settings.json").write_text(content)
        status, said = rig.run(action)
        clear = "settings.json is damaged" in said and "Traceback" not in said
        rig.note(f"pretraining: settings.json holds {content[:10]!r}", status == 2 and clear, said=said[-200:])
    return 0


def _encoder(rig: Rig) -> int:
    """Change the keys and types of a network's description.

    Each change must give one error that names it.
    """
    file = rig.root / "encoder" / "encoder.json"
    whole, described = file.read_bytes(), read_sealed(file)
    for name in ("pretrain", "image_shape", "history", "digest"):
        for value in (None, "text", 3, {}):
            write_sealed(file, {**described, name: value})
            status, said = rig.run(told(lambda: export.load(file)))
            clear = status == 2 and "Traceback" not in said
            rig.note(f"encoder.json: {name} is {json.dumps(value)}", clear, said=said[:200])
    file.write_bytes(whole)
    return 0
