"""How do scores change with the size of the curvature set, and with the damping? A trained encoder, exact scores throughout.

    python experiments/curvature_set.py --data-dir DATA        (simclr_torch; also simclr, byol, barlow_twins)

C is the sampled Fisher of R images, one draw each (R outer products, so that the scores are exact by the Gram matrix of the
gradients); R from 64 to 1,024, nested. 500 further images are scored. Gradients are formed once, a batch at a time, and kept
under `runs`; the command continues where it was stopped. All that follows is float64 algebra on their inner products, for
every R and every λ. λ is given by the effective dimension ρ, `tr C(C + λI)⁻¹ = ρ · rank C`, and as a tenth of the mean
eigenvalue over all parameters. Written to `results/curvature_set_<method>.json`:

    curve       Spearman's correlation and overlap of the highest 1 and 10 % with the scores of the largest R; between
                two disjoint sets of R images; median of score over the score of the largest R
    jackknife   median relative standard error by leaving out each of 16 parts, and the true relative difference between
                disjoint sets of the same size that it predicts
    damping     over ρ: Spearman between disjoint halves of the largest set, with the gradient's norm and with the alignment
                loss (what a score knows beyond these), and with the scores at the other ρ
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from influence_ssl_jax import trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.cli.environment import keep_convolutions_whole
from influence_ssl_jax.configuration import describe
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.data import Digits, Source, Tfds, resident
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.evaluation.exact import inner_products, materialise
from influence_ssl_jax.evaluation.statistics import spearman, top_overlap
from influence_ssl_jax.ihvp.backend import Damping, Spectrum, scalar
from influence_ssl_jax.ihvp.gram import batch_gradients
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.provenance import versions
from influence_ssl_jax.runs.prepare import form_measurement, form_problem
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.types import Batch

HERE = Path(__file__).parent
PARTS = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """What is scored, and over which curvature sets.

    Attributes:
        method: Which encoder of experiments/encoders.
        data_dir: Where tensorflow-datasets keeps CIFAR-10.
        encoder: The network; that of `method` where None.
        images: CIFAR-10, or the bundled digits, which need no download.
        rows: Images of the largest curvature set, a multiple of twice `batch_size`.
        scored: Images that are scored.
        batch_size: Images at a time.
        dimensions: ρ.
        runs: Folder of the gradients.
        results: Folder of the result.
    """

    method: Literal["simclr", "simclr_torch", "byol", "barlow_twins"] = "simclr_torch"
    data_dir: str | None = None
    encoder: Path | None = None
    images: Literal["cifar10", "digits"] = "cifar10"
    rows: int = 1024
    scored: int = 500
    batch_size: int = 32
    dimensions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
    runs: Path = Path("runs/curvature_set")
    results: Path = HERE / "results"

    @classmethod
    def tiny(cls, folder: Path, encoder: Path) -> "Config":
        """Return settings that run every step on a few small digits."""
        return cls(
            encoder=encoder,
            images="digits",
            rows=32,
            scored=8,
            batch_size=4,
            dimensions=(0.1, 0.5),
            runs=folder / "runs",
            results=folder / "results",
        )

    def source(self) -> Source:
        """Return the images."""
        small = self.images == "digits"
        return Digits(8, digits=40) if small else Tfds("cifar10", "train[:10000]", self.data_dir)


def gradients(config: Config) -> dict[str, np.ndarray]:
    """Compute the inner products of all gradients, and the baselines; keep them.

    Products with the rows of C come first. They are computed once and stored on disk.
    """
    folder = config.runs / config.method
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "products.npz"
    if done.exists():
        return dict(np.load(done, allow_pickle=False))
    path = config.encoder or HERE / "encoders" / f"{config.method}_w16_cifar10"
    encoder = Encoder.load(path)
    measurement = form_measurement(encoder, "encoder", GaussianNoise(), CosineDistance())
    count = config.rows + -(-config.scored // config.batch_size) * config.batch_size
    batches = resident(config.source().open(), encoder.input, count, config.batch_size, 0)
    curvature = CurvatureSet(kind="fisher", examples=config.rows, batch_size=config.batch_size)
    problem = form_problem(encoder, "encoder", measurement, curvature, batches)

    @jax.jit
    def of_curvature(problem: Problem, batch: Batch) -> tuple[Array, Array]:
        drawn = batch_gradients(problem, batch, 1)
        return materialise(drawn), jnp.zeros(batch.index.shape)

    @jax.jit
    def of_scored(problem: Problem, batch: Batch) -> tuple[Array, Array]:
        measured = measure(measurement, problem.params, problem.frozen, batch)
        return materialise(measured.gradients), measured.values[0]

    rows, losses = [], []
    for number in range(len(batches.index)):
        part, inside = folder / f"part_{number:04d}.npz", number * config.batch_size < config.rows
        if not part.exists():
            batch = jax.tree.map(lambda leaf, i=number: leaf[i], batches)
            vectors, loss = (of_curvature if inside else of_scored)(problem, batch)
            part.with_suffix(".tmp.npz").unlink(missing_ok=True)
            np.savez(part.with_suffix(".tmp.npz"), vectors=np.asarray(vectors), loss=np.asarray(loss))
            part.with_suffix(".tmp.npz").rename(part)
        held = np.load(part, allow_pickle=False)
        rows.append(held["vectors"] * (config.batch_size**0.5 if inside else 1.0))  # of a mean over a batch: undone
        losses.append(held["loss"])
    arrays = {
        "products": inner_products(np.concatenate(rows)[: config.rows + config.scored]),
        "loss": np.concatenate(losses)[config.rows :][: config.scored],
        "size": np.asarray(trees.size(problem.params)),
    }
    np.savez(done, **arrays)
    for part in folder.glob("part_*.npz"):
        part.unlink()
    return arrays


class Products:
    """Exact scores from inner products alone, for any part of the curvature set."""

    def __init__(self, arrays: dict[str, np.ndarray], rows: int) -> None:
        self._all, self._rows, self._size = arrays["products"], rows, int(arrays["size"])
        self.norms = np.diagonal(self._all)[rows:]

    def damping(self, chosen: np.ndarray, dimension: float | None) -> float:
        """Return λ for these rows, by effective dimension or mean eigenvalue.

        It is a tenth of the mean eigenvalue if no effective dimension is given.
        """
        kernel = self._all[np.ix_(chosen, chosen)] / len(chosen)
        if dimension is None:
            return 0.1 * float(np.trace(kernel)) / self._size
        values = jnp.asarray(np.maximum(np.linalg.eigvalsh(kernel), 0.0))
        spectrum = Spectrum(values, jnp.ones_like(values), resolution=1e-9)
        return float(scalar(Damping(effective_dimension=dimension).resolve_by_spectrum(spectrum)))

    def scores(self, chosen: np.ndarray, damping: float) -> Float[np.ndarray, " scored"]:
        """Compute `gᵀ(C + λI)⁻¹g` of every scored image.

        C is the mean of the outer products of these rows.
        """
        kernel = self._all[np.ix_(chosen, chosen)] / len(chosen)
        along = self._all[self._rows :, chosen] / len(chosen) ** 0.5
        inside = np.sum(along.T * np.linalg.solve(kernel + damping * np.eye(len(chosen)), along.T), axis=0)
        return (self.norms - inside) / damping


def agreement(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Measure how alike two scores rank."""
    counts = [max(1, round(share * len(left))) for share in (0.01, 0.1)]
    return {
        "spearman": spearman(left, right),
        "highest 1 %": top_overlap(left, right, counts[0]),
        "highest 10 %": top_overlap(left, right, counts[1]),
        "median ratio": float(np.median(left / right)),
    }


def curve(products: Products, rows: int, dimension: float | None) -> list[dict[str, Any]]:
    """Scores of nested curvature sets beside those of the largest, at the λ of the largest, and of disjoint ones."""
    every = np.arange(rows)
    damping = products.damping(every, dimension)
    final, points, count = products.scores(every, damping), [], rows
    while count >= 16:
        row: dict[str, Any] = {
            "rows": count,
            "with the largest": agreement(products.scores(every[:count], damping), final),
        }
        if 2 * count <= rows:
            halves = [products.scores(part, damping) for part in (every[:count], every[count : 2 * count])]
            row["disjoint"] = agreement(*halves)
            row["relative difference"] = float(np.median(np.abs(halves[0] - halves[1]) / final)) / 2**0.5
        left_out = [
            products.scores(np.delete(every[:count], part), damping) for part in np.split(np.arange(count), PARTS)
        ]
        error = np.sqrt((PARTS - 1) * np.var(left_out, axis=0))
        row["jackknife"] = float(np.median(error / final))
        points.append(row)
        count //= 2
    return points


def sweep(products: Products, loss: np.ndarray, rows: int, dimensions: tuple[float, ...]) -> list[dict[str, Any]]:
    """Measure stability and agreement with the baselines, for every damping.

    The dampings are several effective dimensions, and a tenth of the mean eigenvalue.
    """
    every, points = np.arange(rows), []
    dampings = {str(share): products.damping(every, share) for share in dimensions}
    dampings["0.1 × mean eigenvalue"] = products.damping(every, None)
    known = {name: products.scores(every, damping) for name, damping in dampings.items()}
    for name, damping in dampings.items():
        halves = [products.scores(part, damping) for part in (every[: rows // 2], every[rows // 2 :])]
        points.append(
            {
                "effective dimension": name,
                "damping": damping,
                "disjoint halves": agreement(*halves),
                "gradient norm": spearman(known[name], products.norms),
                "alignment loss": spearman(known[name], loss),
                "with the others": {other: spearman(known[name], scores) for other, scores in known.items()},
            }
        )
    return points


def run(config: Config) -> Path:
    """Form what is missing, then write the result."""
    arrays = gradients(config)
    products = Products(arrays, config.rows)
    places = ("runs", "data_dir", "results", "encoder")
    record = {
        "configuration": {name: value for name, value in describe(config).items() if name not in places},
        "parameters": int(arrays["size"]),
        "curve": {str(share): curve(products, config.rows, share) for share in (0.1, 0.5, 0.9, None)},
        "damping": sweep(products, arrays["loss"], config.rows, config.dimensions),
        "versions": versions(),
    }
    config.results.mkdir(parents=True, exist_ok=True)
    out = config.results / f"curvature_set_{config.method}.json"
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return out


def main() -> None:
    """Run the experiment for one encoder."""
    keep_convolutions_whole()
    config = tyro.cli(Config)
    record = json.loads(run(config).read_text())
    for share, rows in record["curve"].items():
        for row in rows:
            print(share, json.dumps(row))
    for row in record["damping"]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
