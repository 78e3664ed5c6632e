"""What do the steps of a run take for a vision transformer of the size people have, on real photographs?

    python -m benchmarks.vision_transformer --photographs 256

A file of DINOv2's ViT-S/14 (21.7 million parameters, random weights: cost does not depend on them) is imported; photographs
of 1280×960 pixels in a folder are scored with LoGra 16 (in float32 and in bfloat16) and EK-FAC 64 at 224 pixels; a sample of
the scores is audited from the rows of its curvature; the report is made. Every step is a command line in a process of its
own, whose peak memory the kernel reports; a step that has a result is not run again. Last, programs are
compiled again, and a score of each backend is compared with a plain gradient of the same measurement over the same images,
in turns.

The photographs are crops of scikit-learn's two sample pictures, decoded and resized as any others.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import Compiled, rows
from benchmarks.results import write
from influence_ssl_jax import trees
from influence_ssl_jax.augment import GaussianNoise
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.data import Folder, resident
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.ihvp import EKFAC, Backend, LoGra
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.scoring import fitting
from influence_ssl_jax.scoring.scores import Scorer, Scoring
from influence_ssl_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        photographs: How many images are scored, one draw each.
        few: How many of them are scored in bfloat16, which a processor without such arithmetic converts at every operation.
        curvature: Images that C is averaged over.
        audited: Images that are certified.
        size: Height and width of the input.
        width: Channels of the transformer.
        depth: Blocks of the transformer.
        pixels: Width and height of a photograph.
        logra_rank: Of LoGra.
        ekfac_rank: Of EK-FAC.
        scored_batch: Images at a time, where all are scored.
        batch: Images at a time, in the comparison with a plain gradient.
        repeats: Of that comparison.
    """

    photographs: int = 256
    few: int = 16
    curvature: int = 32
    audited: int = 8
    size: int = 224
    width: int = 384
    depth: int = 12
    pixels: tuple[int, int] = (1280, 960)
    logra_rank: int = 16
    ekfac_rank: int = 64
    scored_batch: int = 8
    batch: int = 4
    repeats: int = 3

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings that run every step in seconds."""
        return cls(
            photographs=12,
            few=4,
            curvature=4,
            audited=2,
            size=28,
            width=64,
            depth=1,
            pixels=(64, 48),
            logra_rank=2,
            ekfac_rank=4,
            scored_batch=2,
            batch=2,
            repeats=1,
        )


def weights(config: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw random weights by DINOv2's names.

    Positions are those of 37×37 patches, for inputs of any size.
    """
    width, patches = config.width, 37**2

    def matrix(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    arrays = {
        "cls_token": matrix(1, 1, width),
        "mask_token": matrix(1, width),
        "pos_embed": 0.02 * matrix(1, 1 + patches, width),
        "patch_embed.proj.weight": matrix(width, 3, 14, 14) / 14,
        "patch_embed.proj.bias": np.zeros(width, np.float32),
        "norm.weight": np.ones(width, np.float32),
        "norm.bias": np.zeros(width, np.float32),
    }
    for block in range(config.depth):
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in layers.items():
            arrays[f"blocks.{block}.{name}.weight"] = matrix(*shape)
            arrays[f"blocks.{block}.{name}.bias"] = np.zeros(shape[0], np.float32)
        for name in ("norm1", "norm2"):
            arrays[f"blocks.{block}.{name}.weight"] = np.ones(width, np.float32)
            arrays[f"blocks.{block}.{name}.bias"] = np.zeros(width, np.float32)
        for name in ("ls1", "ls2"):
            arrays[f"blocks.{block}.{name}.gamma"] = np.full(width, 0.5, np.float32)
    return arrays


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write float32 arrays as a safetensors file: length of the header, header, plain bytes."""
    header, place = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def make_photographs(config: Config, folder: Path, rng: np.random.Generator) -> None:
    """Write crops of two photographs, enlarged and mirrored, as JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    for place in range(config.photographs):
        picture = pictures[place % len(pictures)]
        share = rng.uniform(0.4, 1.0)
        size = int(share * picture.width), int(share * picture.height)
        left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(picture.size, size, strict=True))
        crop = picture.crop((left, top, left + size[0], top + size[1])).resize(config.pixels, Image.Resampling.BICUBIC)
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
        crop.save(folder / f"{place:04d}.jpg", quality=90)
    names = [f"{place:04d}.jpg" for place in range(config.few)]
    (folder.parent / "few.txt").write_text("\n".join(names) + "\n")


def steps(config: Config, here: Path) -> dict[str, list[str]]:
    """Return the command lines, in order."""
    size, few = str(config.scored_batch), ("--source.only", str(here / "few.txt"))

    def score(name: str, *backend: str, precision: str = "float32", only: tuple[str, ...] = ()) -> list[str]:
        curvature = min(config.few if only else config.photographs, config.curvature)
        return [
            *("score", "--encoder", str(here / "encoder"), "--out", str(here / name), "--precision", precision),
            *("--draws", "1", "--batch-size", size, "--curvature.kind", "fisher"),
            *("--curvature.examples", str(curvature), "--curvature.batch-size", str(min(4, curvature))),
            *("source:folder", "--source.path", str(here / "photographs"), *only, *backend),
        ]

    logra = "backend:logra", "--backend.rank", str(config.logra_rank)
    file, encoder = str(here / "weights.safetensors"), str(here / "encoder")
    sample = "--examples", str(config.audited), "--batch-size", "2"
    return {
        "import": ["import", file, "--out", encoder, "--as", "dinov2", "--size", str(config.size)],
        "score, LoGra": score("logra", *logra),
        "score, EK-FAC": score("ekfac", "backend:ekfac", "--backend.rank", str(config.ekfac_rank)),
        "score, LoGra, bfloat16": score("bfloat16", *logra, precision="bfloat16", only=few),
        "audit": ["audit", str(here / "logra"), "--by", "rows", *sample],
        "report": ["report", str(here / "logra"), "--out", str(here / "report.html")],
    }


def run(command: list[str]) -> dict[str, Any]:
    """Run a command line in a process of its own.

    Returns:
        Its seconds and the peak of its memory.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "influence_ssl_jax", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    return {"seconds": round(time.perf_counter() - begin, 1), "peak MB": round(used.ru_maxrss / 1024)}


class Given(NamedTuple):
    """What scores are compared on: a problem, and a batch of images."""

    problem: Problem
    batch: Batch


def given(config: Config, folder: Path) -> Given:
    """Read the encoder and the photographs."""
    encoder = Encoder.load(folder / "encoder")
    objective = Objective(encoder.network, GaussianNoise(sigma=0.2), CosineDistance())
    source = Folder(folder / "photographs").open()
    held = resident(source, encoder.input, count=config.curvature, batch_size=min(4, config.curvature), seed=0)
    chosen = resident(source, encoder.input, count=config.batch, batch_size=config.batch, seed=1)
    problem = Problem(encoder.params, encoder.frozen, held, objective, "fisher")
    return Given(problem, jax.tree.map(lambda leaf: leaf[0], chosen))


def compile_seconds(config: Config, problem: Problem, batch: Batch) -> dict[str, list[float]]:
    """Measure the seconds to compile the fit and the score of LoGra."""
    seconds: dict[str, list[float]] = {}

    def compiled(name: str, trace: Callable[[], jax.stages.Traced]) -> None:
        begin = time.perf_counter()
        traced = trace()
        after_trace = time.perf_counter()
        lowered = traced.lower()
        after_lowering = time.perf_counter()
        lowered.compile()
        times = begin, after_trace, after_lowering, time.perf_counter()
        seconds[name] = [round(end - start, 1) for start, end in itertools.pairwise(times)]

    backend = LoGra(config.logra_rank)
    compiled("fit", lambda: fitting.fit.trace(backend, problem, jax.random.key(0)))
    state = jax.tree.map(
        lambda like: jnp.ones(like.shape, like.dtype), jax.eval_shape(backend.fit, problem, jax.random.key(0))
    )
    scorer = Scorer.of(problem, state, backend, Scoring(draws=1, batch_size=config.batch))
    compiled("score", lambda: jax.jit(lambda scorer, batch: scorer(batch).score).trace(scorer, batch))
    return seconds


def multiples(config: Config, problem: Problem, batch: Batch) -> list[dict[str, Any]]:
    """Time a score of each backend and a gradient, in turns."""

    def gradient(params: Params, batch: Batch) -> Params:
        return jax.grad(lambda params: jnp.sum(measure(problem.objective, params, problem.frozen, batch).values))(
            params
        )

    backends: dict[str, Backend] = {
        f"LoGra {config.logra_rank}": LoGra(config.logra_rank),
        f"EK-FAC {config.ekfac_rank}": EKFAC(config.ekfac_rank),
    }
    operations: dict[str, Any] = {"gradient": Compiled(jax.jit(gradient), ((problem.params, batch),))}
    for name, backend in backends.items():
        scorer = Scorer.fit(problem, backend, Scoring(draws=1, batch_size=config.batch))
        operations[name] = Compiled(jax.jit(lambda scorer, batch: scorer(batch).score), ((scorer, batch),))
    return rows({"this package": operations}, config.repeats, 1000 / config.batch)


def measure_steps(config: Config, folder: Path) -> dict[str, Any]:
    """Make the files, run the steps that have no result yet in `folder`, compare with a plain gradient."""
    keep_convolutions_whole()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "steps.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if not done:
        rng = np.random.default_rng(0)
        write_safetensors(folder / "weights.safetensors", weights(config, rng))
        make_photographs(config, folder / "photographs", rng)
    for step, command in steps(config, folder).items():
        if step not in done:
            done[step] = run(command)
            print(step, done[step], flush=True)
            kept.write_text(json.dumps(done, indent=1) + "\n")
    audited = json.loads((folder / "logra" / "audit.json").read_text())
    return {
        "parameters": trees.size(Encoder.load(folder / "encoder").params),
        "steps": done,
        "audit": {key: audited[key] for key in ("counts", "relative_width")},
        "compile_seconds": compile_seconds(config, *given(config, folder)),
        "multiples": multiples(config, *given(config, folder)),
    }


def main() -> None:
    """Measure, and write."""
    config = tyro.cli(Config)
    write("vision_transformer", config, measure_steps(config, Path("runs/vision_transformer")))


if __name__ == "__main__":
    main()
