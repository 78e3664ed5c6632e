"""Score a part of the sample under other perturbations, curvatures and dampings, with each gradient computed once.

LoGra's coordinates of a gradient depend on neither the damping nor the curvature, only on its bases, which are those of the
table's own run here. So one program gives the coordinates of the gradients of any pair of views, and the scores under every
curvature and damping are sums over them.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.study.results import resampled
from experiments.study.table import Study, chosen_ids, images_of, settings_of
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.recipes import PERTURBATIONS
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.configuration import fingerprint
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.evaluation.statistics import Estimate, spearman
from influence_ssl_jax.ihvp.eigenbasis import Coordinates, EigenbasisState, project
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.progress import silent
from influence_ssl_jax.runs.prepare import draw_problem, prepare
from influence_ssl_jax.runs.score import identity
from influence_ssl_jax.scoring.fitting import shapes
from influence_ssl_jax.store import load_fitted
from influence_ssl_jax.types import Batch

DRAWS, STANDARD_DRAWS, BATCH = 2, 4, 50
RELATIVE = 0.1
"""λ over the mean eigenvalue of a layer, as in the table."""
STRENGTHS = (0.05, 0.1, 0.3, 0.5)


@dataclasses.dataclass(frozen=True)
class Prepared(Views):
    """Two views that were drawn before, one behind the other in an image's channels."""

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "2 height width half"]:
        """Take them apart."""
        del key
        return jnp.stack(jnp.split(image, 2, axis=-1))


def views_of(name: str) -> Views:
    """Return a perturbation by its name: one of the product's, `sigma <number>`, or `common` noise."""
    if name.startswith("sigma "):
        return GaussianNoise(float(name.removeprefix("sigma ")))
    return PERTURBATIONS["noise" if name in ("standard", "common", "curvature set") else name]


class Curvature(NamedTuple):
    """Second moment of LoGra's coordinates, layer by layer, taken apart.

    Attributes:
        rotations: Eigenvectors.
        eigenvalues: μ.
        means: Mean eigenvalue of the layer's whole block.
    """

    rotations: dict[str, np.ndarray]
    eigenvalues: dict[str, np.ndarray]
    means: dict[str, float]

    @classmethod
    def of_state(cls, state: EigenbasisState) -> "Curvature":
        """Read a fitted state."""
        rotations, values = (
            {k: np.asarray(v, np.float64) for k, v in part.items()} for part in (state.rotations, state.eigenvalues)
        )
        return cls(rotations, values, {name: float(mean) for name, mean in state.mean.items()})

    @classmethod
    def of_gradients(cls, coordinates: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> "Curvature":
        """Average the outer products of gradients: the empirical Fisher, where these are the curvature set's."""
        pairs = {name: np.linalg.eigh(rows.T @ rows / len(rows)) for name, rows in coordinates.items()}
        values = {name: np.maximum(pair.eigenvalues, 0.0) for name, pair in pairs.items()}
        means = {
            name: float(values[name].sum()) / sizes[name] for name in pairs
        }  # projections keep norms in expectation
        return cls({name: pair.eigenvectors for name, pair in pairs.items()}, values, means)

    def scores(self, coordinates: Mapping[str, np.ndarray], relative: float = RELATIVE) -> Float[np.ndarray, " n"]:
        """Return `Σ_layers gᵀB (μ + λ)⁻¹ Bᵀg`, λ a multiple of the layer's mean eigenvalue, at least 1e-6 of the largest."""
        dampings = {name: relative * mean for name, mean in self.means.items()}
        floor = 1e-6 * max(dampings.values())
        every = []
        for name, rows in coordinates.items():
            rotation, damping = self.rotations[name], max(dampings[name], floor)
            along = rows @ rotation
            every.append(np.sum(along**2 / (self.eigenvalues[name] + damping), axis=1))
            if rotation.shape[1] < rotation.shape[0]:  # the eigenvalues of the rest are zero
                every.append(np.sum((rows - along @ rotation.T) ** 2, axis=1) / damping)
        return np.sum(every, axis=0)


@jax.jit
def coordinates_of(problem: Problem, state: EigenbasisState, batch: Batch) -> tuple[Coordinates, Float[Array, " n"]]:
    """Return LoGra's coordinates of the gradients of prepared views, and the alignment losses."""
    objective = Objective(problem.objective.network, Prepared(), CosineDistance())
    measured = measure(objective, problem.params, problem.frozen, batch)
    return project(measured.gradients, state.blocks, state.bases), measured.values[0]


class Draws(NamedTuple):
    """What every draw of a perturbation gives.

    Attributes:
        coordinates: One for each draw.
        loss: Alignment loss, [draws, images].
    """

    coordinates: list[dict[str, np.ndarray]]
    loss: Float[np.ndarray, "draws images"]

    def scores(self, curvature: Curvature, relative: float = RELATIVE) -> Float[np.ndarray, "draws images"]:
        """Return the score of every draw."""
        return np.stack([curvature.scores(each, relative) for each in self.coordinates])


class Variants:
    """The part of the sample that is scored in many ways, with the fit of the table's run.

    Attributes:
        study: The scale.
        ids: Which images.
        problem: The measurement and the curvature set.
        state: The fit of the table's run.
        standard_curvature: The same, as numbers.
    """

    def __init__(self, study: Study) -> None:
        sample = chosen_ids(study)["sample"]
        self.study = study
        self.ids = np.random.default_rng(1).permutation(sample)[: study.variants].tolist()
        settings = settings_of(study)
        given = prepare(settings, silent)
        self.problem, _ = draw_problem(settings, given)
        described = identity(settings, given.encoder, given.transform, given.source)
        owner = fingerprint({"size": len(given.source), **described})
        held = load_fitted(settings.out, *shapes(self.problem, settings.backend, settings.scoring.seed)[:2], owner)
        if held is None:
            raise ValueError(f"{settings.out} holds no fit of these settings: run experiments.study.table first.")
        self.state = held[0]
        self._images = np.stack([given.transform(image) for image in images_of(study, self.ids)])
        self.standard_curvature = Curvature.of_state(self.state)

    def draws(self, name: str) -> Draws:
        """Return the draws of a perturbation; computed once, then read."""
        place = self.study.run / "variants" / f"{name.replace(' ', '_')}_{len(self.ids)}.npz"
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            drawn = self._compute(name)
            arrays = {
                f"{number} {block}": rows
                for number, each in enumerate(drawn.coordinates)
                for block, rows in each.items()
            }
            np.savez(place.with_suffix(".part.npz"), allow_pickle=False, loss=drawn.loss, **arrays)
            place.with_suffix(".part.npz").rename(place)
        with np.load(place, allow_pickle=False) as held:
            loss = held["loss"]
            blocks = [name.partition(" ")[2] for name in held.files if name.startswith("0 ")]
            coordinates = [
                {block: held[f"{number} {block}"].astype(np.float64) for block in blocks} for number in range(len(loss))
            ]
        return Draws(coordinates, loss)

    def empirical_fisher(self) -> Curvature:
        """Return the curvature that averages the measurement's own gradients, over the table's curvature set."""
        sizes = {block.name: block.size for block in self.state.blocks}
        return Curvature.of_gradients(self.draws("curvature set").coordinates[0], sizes)

    def _compute(self, name: str) -> Draws:
        if name == "curvature set":
            images = np.asarray(self.problem.batches.image).reshape(-1, *self._images.shape[1:])
            return self._drawn(images, name, 1)
        return self._drawn(self._images, name, STANDARD_DRAWS if name == "standard" else DRAWS)

    def _drawn(self, images: np.ndarray, name: str, draws: int) -> Draws:
        perturb = jax.jit(jax.vmap(views_of(name)))
        numbered = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
        # A stream of its own: the draws of one perturbation are independent of those of another, and of the table's.
        root = jax.random.fold_in(jax.random.key(1), zlib.crc32(name.encode()) >> 1)
        batches_drawn, losses = [], []
        for draw in range(draws):
            key, parts, values = jax.random.fold_in(root, draw), [], []
            for start in range(0, len(images), BATCH):
                numbers = np.arange(start, start + BATCH) % len(images)  # the last batch is filled up from the first
                keys = numbered(key, np.zeros_like(numbers) if name == "common" else numbers)
                pair = perturb(keys, jnp.asarray(images[numbers], jnp.float32) / 255)
                prepared = jnp.concatenate([pair[:, 0], pair[:, 1]], axis=-1)
                batch = Batch(prepared, keys, jnp.asarray(numbers, jnp.int32), None)
                coordinates, loss = coordinates_of(self.problem, self.state, batch)
                parts.append(jax.tree.map(np.asarray, coordinates))
                values.append(np.asarray(loss))
            batches_drawn.append(jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *parts))
            losses.append(np.concatenate(values)[: len(images)])
        return Draws(batches_drawn, np.stack(losses))


def agreement(left: np.ndarray, right: np.ndarray, resamples: int = 500) -> dict[str, Estimate]:
    """Return how alike two perturbations score, and how alike they could at most, given the spread of their draws.

    The ceiling is the geometric mean of the two reliabilities in ranks, each the Spearman–Brown value of the mean
    correlation between draws.

    Args:
        left: Scores [draws, images].
        right: Scores [draws, images].
        resamples: Bootstrap draws of images.
    """

    def statistics(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
        means = left.mean(axis=1), right.mean(axis=1)
        rank, ceiling = spearman(*means), (reliability(left.T) * reliability(right.T)) ** 0.5
        return {
            "spearman": rank,
            "pearson": float(np.corrcoef(*means)[0, 1]),
            "ceiling": ceiling,
            "spearman over ceiling": rank / ceiling,
        }

    return resampled(statistics, left.T, right.T, resamples=resamples)


def reliability(scores: Float[np.ndarray, "draws images"]) -> float:
    """Return the rank correlation that a second, independent scoring of as many draws would have; NaN below zero."""
    draws = len(scores)
    pairs = [spearman(scores[i], scores[j]) for i in range(draws) for j in range(i)]
    between = float(np.mean(pairs))
    return draws * between / (1 + (draws - 1) * between) if between > 0 else float("nan")
