"""Does a scoring run survive everything that a scheduler, a disk and a hurried user can do to it?

    python benchmarks/fault_injection.py

Runs of the real command line, each in a process of its own, on a small network and a folder of images: killed (SIGKILL)
at random moments and gone on with until they are through; stopped by a disk that takes no more bytes; with parts,
manifest and fitted curvature cut short, flipped by a bit or deleted in between; begun twice at once; with other settings;
over images that were taken away or renamed. Whatever happened, the table must have the bytes of an undisturbed run's, or
the command must refuse with a reason and leave the scores alone. About ten minutes on two cores. Expected: 0 examples
lost or repeated.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import tyro
from PIL import Image
from rich.console import Console

from influence_ssl_jax import cli
from influence_ssl_jax.commands import pretrain as pretrain_command
from influence_ssl_jax.commands import score_run  # noqa: F401  imported once, before the processes divide
from influence_ssl_jax.data import Folder, ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.nets.heads import Projector
from influence_ssl_jax.nets.self_supervised import SelfSupervised
from influence_ssl_jax.train import Probe, export
from influence_ssl_jax.train.recipes import tiny
from influence_ssl_jax.train.settings import Pretrain

SIZE = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is tried.

    Attributes:
        kills: Of scoring runs, at least.
        training_kills: Of pretraining runs, at least.
        at_most: Kills of one run, before it is left alone to come through.
        images: Images in the folder.
        seed: Of the moments.
        out: Where the JSON goes.
    """

    kills: int = 36
    training_kills: int = 6
    at_most: int = 12
    images: int = 600
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "fault_injection.json"


class OneConvolution(nn.Module):
    """A backbone that compiles in no time."""

    dtype: object = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(not train, name="bn")(nn.Conv(4, (3, 3), use_bias=False, name="conv")(images))
        return jnp.mean(nn.relu(x), axis=(1, 2))


class Small(Pretrain):
    """The real training of a small network."""

    def module(self, dtype=None):
        return SelfSupervised(OneConvolution(dtype), Projector(8, 4, dtype=dtype), None)


export.Pretrain = Small  # what a saved network is restored as


class Rig:
    """A folder of images, an encoder, and command lines over them.

    Attributes:
        root: Where everything is.
        log: What was tried and what came of it.
    """

    def __init__(self, root: Path, config: Config) -> None:
        self.root, self.config, self.log = root, config, []
        self.random = random.Random(config.seed)
        (root / "images").mkdir(parents=True)
        draw = np.random.default_rng(config.seed)
        for number in range(config.images):
            Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(root / f"images/{number}.png")
        (root / "images" / "7.png").write_bytes(b"no image")

    def score(self, out: str, *more: str, source: str = "images") -> list[str]:
        """A command line."""
        folder = ["source:folder", "--source.path", str(self.root / source)]
        fixed = ["--encoder", str(self.root / "encoder"), "--curvature.examples", "64", "--parts.rows", "40"]
        return ["score", "--out", str(self.root / out), *fixed, "--batch-size", "20", "--draws", "2", *more, *folder]

    def train(self, out: str) -> None:
        """Pretrain a small network, or go on with it."""
        fields = {field.name: getattr(tiny(SimCLR()), field.name) for field in dataclasses.fields(Pretrain)}
        training = Small(**{**fields, "epochs": 5, "batch_size": 50})
        probe, source = Probe(bank=8, queries=8, neighbours=1, linear=0), Folder(str(self.root / "images"))
        command = pretrain_command.PretrainCommand(self.root / out, source, training, ToInput(SIZE, SIZE), probe)
        command.run(Console(quiet=True))

    def note(self, fault: str, survived: bool, **facts: object) -> None:
        """One line of the log."""
        facts = {name: str(f).replace(f"{self.root}/", "") if isinstance(f, str) else f for name, f in facts.items()}
        self.log.append({"fault": fault, "survived": survived, **facts})
        print(f"{'survived' if survived else 'FAILED  '}  {fault}  {facts or ''}", flush=True)


def started(action: Callable[[], int | None], said: Path) -> int:
    """A process of its own for `action`, which nothing of JAX has run in before; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    with contextlib.suppress(BaseException), said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        status = action() or 0
    os._exit(status)


def command(arguments: list[str], limit: int | None = None) -> Callable[[], int]:
    """The command line as an action, maybe in a process that can write no file beyond `limit` bytes."""

    def action() -> int:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        plain = Console(
            width=200, force_terminal=False, file=io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), write_through=True)
        )
        return cli.run(arguments, plain, plain)

    return action


def ended(process: int) -> int:
    """Its exit status, −9 where it was killed."""
    status = os.waitpid(process, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def table(folder: Path) -> str:
    """A hash of the finished table; empty where there is none."""
    path = folder / "scores.parquet"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def lost_or_repeated(folder: Path, images: int) -> int:
    """Examples of a finished table that are missing or there more than once."""
    found = Counter(pq.read_table(folder / "scores.parquet")["index"].to_pylist())
    return sum(found[index] != 1 for index in range(images)) + sum(index not in range(images) for index in found)


def killed_until_through(rig: Rig, action: Callable[[], int | None], seconds: float, at_most: int) -> int:
    """Start an action again and again, killing it at random moments; the number of kills until it came through."""
    for kills in range(at_most + 1):
        process = started(action, rig.root / "said.txt")
        if kills == at_most:
            assert ended(process) == 0, (rig.root / "said.txt").read_text()
            return kills
        deadline = time.monotonic() + rig.random.uniform(0.1, 0.9) * seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                assert status == 0, (rig.root / "said.txt").read_text()
                return kills
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        ended(process)
    raise AssertionError("unreachable")


def kills(rig: Rig, fresh: str, seconds: float) -> int:
    """Scoring runs killed at random moments; returns examples lost or repeated."""
    total = wrong = runs = 0
    while total < rig.config.kills:
        out, runs = f"killed{runs}", runs + 1
        suffered = killed_until_through(rig, command(rig.score(out)), seconds, rig.config.at_most)
        wrong += lost_or_repeated(rig.root / out, rig.config.images)
        total += suffered
        rig.note(f"SIGKILL {suffered} times, then through", table(rig.root / out) == fresh, kills=suffered)
        shutil.rmtree(rig.root / out)
    return wrong


def training_kills(rig: Rig) -> None:
    """Pretraining killed at random moments: the encoder that it would have made."""
    for out in ("encoder", "warm"):  # the first compiles
        began = time.monotonic()
        assert ended(started(lambda out=out: rig.train(out), rig.root / "said.txt")) == 0
        seconds = time.monotonic() - began
    whole, total, runs = (rig.root / "encoder" / "encoder.npz").read_bytes(), 0, 0
    while total < rig.config.training_kills:
        out, runs = f"training{runs}", runs + 1
        suffered = killed_until_through(rig, lambda out=out: rig.train(out), seconds, rig.config.at_most)
        total += suffered
        same = (rig.root / out / "encoder.npz").read_bytes() == whole
        rig.note(f"pretraining: SIGKILL {suffered} times, then through", same, kills=suffered)


def damages(rig: Rig, fresh: str) -> int:
    """Files cut short, flipped by a bit or deleted between a run that was killed and the one that goes on."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[rig.random.randrange(len(content))] ^= 1 << rig.random.randrange(8)
        path.write_bytes(bytes(content))

    ways = {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[: rig.random.randrange(path.stat().st_size)]),
        "flipped by a bit": flip,
        "deleted": lambda path: path.unlink(),
    }
    names = ("parts/0000/*.parquet", "parts/0000/manifest.jsonl", "fitted.npz", "fitted.json")
    assert ended(started(command(rig.score("damaged")), rig.root / "said.txt")) == 0
    wrong = 0
    for name in names:
        for way, damage in ways.items():
            damage(sorted((rig.root / "damaged").glob(name))[0])
            (rig.root / "damaged" / "scores.parquet").unlink(missing_ok=True)
            (rig.root / "damaged" / "run.json").unlink(missing_ok=True)
            status = ended(started(command(rig.score("damaged")), rig.root / "said.txt"))
            wrong += lost_or_repeated(rig.root / "damaged", rig.config.images)
            rig.note(f"{name} {way}", status == 0 and table(rig.root / "damaged") == fresh)
    return wrong


def full_disk(rig: Rig, fresh: str) -> int:
    """The kernel refuses to write beyond a size that the run needs: stopped with a reason, then through."""
    status = ended(started(command(rig.score("full"), limit=1500), rig.root / "said.txt"))
    said = (rig.root / "said.txt").read_text()
    refused = status == 2 and "File too large" in said and not table(rig.root / "full")
    status = ended(started(command(rig.score("full")), rig.root / "said.txt"))
    rig.note("no more bytes can be written", refused and status == 0 and table(rig.root / "full") == fresh, said=said)
    return lost_or_repeated(rig.root / "full", rig.config.images)


def refusals(rig: Rig, fresh: str) -> int:
    """Two runs at once, other settings, images taken away, images renamed: refused with the reason, scores untouched."""
    first = started(command(rig.score("twice")), rig.root / "first.txt")
    while not (rig.root / "twice" / "identity.json").exists():
        time.sleep(0.01)
    status = ended(started(command(rig.score("twice")), rig.root / "said.txt"))
    said = (rig.root / "said.txt").read_text()
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
        status = ended(started(command(arguments), rig.root / "said.txt"))
        said = (rig.root / "said.txt").read_text()
        rig.note(fault, status == 2 and reason in said and table(rig.root / "twice") == fresh, said=said)
    return lost_or_repeated(rig.root / "twice", rig.config.images)


def run(config: Config) -> dict:
    """Everything, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(name) / "cache"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        rig = Rig(Path(name) / "rig", config)
        training_kills(rig)
        for warm in ("cold", "fresh"):  # the first compiles
            began = time.monotonic()
            status = ended(started(command(rig.score(warm)), rig.root / "said.txt"))
            assert status == 0, (rig.root / "said.txt").read_text()
            seconds = time.monotonic() - began
        fresh = table(rig.root / "fresh")
        rig.note("two undisturbed runs are the same bytes", table(rig.root / "cold") == fresh)
        lost = kills(rig, fresh, seconds)
        if config.kills >= 30:
            lost += damages(rig, fresh) + full_disk(rig, fresh) + refusals(rig, fresh)
        killed = sum(int(line.get("kills", 0)) for line in rig.log)
        return {
            "kills": killed,
            "faults tried": len(rig.log),
            "faults survived": sum(line["survived"] for line in rig.log),
            "examples lost or repeated": lost,
            "log": rig.log,
        }


def main() -> None:
    """Inject, print, write; the exit status says whether all was survived."""
    config = tyro.cli(Config)
    found = run(config)
    config.out.parent.mkdir(exist_ok=True)
    config.out.write_text(
        json.dumps({"config": {**dataclasses.asdict(config), "out": config.out.name}, **found}, indent=1) + "\n"
    )
    print({name: value for name, value in found.items() if name != "log"})
    raise SystemExit(found["faults tried"] != found["faults survived"] or found["examples lost or repeated"] != 0)


if __name__ == "__main__":
    main()
