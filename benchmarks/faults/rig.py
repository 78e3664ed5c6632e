"""A small network, a folder of images, command lines over them, and what a finished table must be."""

import dataclasses
import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.faults.processes import Action, ended, started
from influence_ssl_jax.data import Folder, ToInput
from influence_ssl_jax.losses import SimCLR
from influence_ssl_jax.nets.heads import Projector, SelfSupervised
from influence_ssl_jax.runs.pretrain import pretrain
from influence_ssl_jax.runs.settings import PretrainRun
from influence_ssl_jax.train import Probe, export
from influence_ssl_jax.train.settings import Pretrain, tiny

Kind: TypeAlias = Literal["kills", "damage", "disk", "refusals", "images", "products", "states", "stops"]
SIZE = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is tried.

    Attributes:
        faults: Which kinds; each is over one undisturbed run.
        kills: Of scoring runs, at least.
        training_kills: Of pretraining runs, at least.
        at_most: Largest number of kills of one run; it then runs to its end.
        stops: Signals to scoring runs, at least.
        flips: Bits flipped in each finished file, one at a time.
        images: Images in the folder.
        seed: Of the moments.
        out: The file that the record is added to.
    """

    faults: tuple[Kind, ...] = get_args(Kind)
    kills: int = 36
    training_kills: int = 6
    at_most: int = 12
    stops: int = 12
    flips: int = 1500
    images: int = 600
    seed: int = 0
    out: Path = Path(__file__).parents[1] / "results" / "fault_injection.json"


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
        log: What was tried, and the outcome.
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
        """Return the command line of a run of scores."""
        folder = ["source:folder", "--source.path", str(self.root / source)]
        fixed = ["--encoder", str(self.root / "encoder"), "--curvature.examples", "64", "--parts.rows", "40"]
        return ["score", "--out", str(self.root / out), *fixed, "--batch-size", "20", "--draws", "2", *more, *folder]

    def train(self, out: str, seed: int = 0) -> None:
        """Pretrain a small network, or continue its training."""
        fields = {field.name: getattr(tiny(SimCLR()), field.name) for field in dataclasses.fields(Pretrain)}
        training = Small(**{**fields, "epochs": 5, "batch_size": 50, "seed": seed})
        probe, source = Probe(bank=8, queries=8, neighbours=1, linear=0), Folder(str(self.root / "images"))
        settings = PretrainRun(self.root / out, source, training, ToInput(SIZE, SIZE), probe=probe)
        pretrain(settings)

    def run(self, action: Action, said: str = "said.txt") -> tuple[int, str]:
        """Run an action in its own process; return its status and output."""
        status = ended(started(action, self.root / said))
        return status, (self.root / said).read_text()

    def note(self, fault: str, survived: bool, **facts: object) -> None:
        """Write one line of the log."""
        facts = {name: str(f).replace(f"{self.root}/", "") if isinstance(f, str) else f for name, f in facts.items()}
        self.log.append({"fault": fault, "survived": survived, **facts})
        print(f"{'survived' if survived else 'FAILED  '}  {fault}  {facts or ''}", flush=True)


def table(folder: Path) -> str:
    """Return a hash of the finished table; empty if there is none."""
    path = folder / "scores.parquet"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def lost_or_repeated(folder: Path, images: int) -> int:
    """Count the examples that a finished table lacks or repeats."""
    counts = Counter(pq.read_table(folder / "scores.parquet")["index"].to_pylist())
    return sum(counts[index] != 1 for index in range(images)) + sum(index not in range(images) for index in counts)
