"""Does a score predict what retraining without the image does, where a network memorises its images?

    python -m experiments.study.memorised --data-dir DIR                    (half an hour of one core, resumable)

The question of `retraining`, asked of networks that are small enough to be trained by the hundred until they memorise: a
perceptron on images of 8×8 pixels, in batches of all of its images. Its pretraining compares an image with itself under
noise of σ 0.2, which is what a score measures; so theory and experiment speak of one loss. Halves of the images, effect,
reliability and rivals are those of `retraining`.

The scores are exact: over the Fisher matrix of the measurement (the published curvature, by as many draws an image as the
representation is wide), and over that of the pretraining loss with its projector, each for several dampings. λ is given by
the effective dimension ρ, `tr C(C + λI)⁻¹ = ρ · rank C`, and as a tenth of the mean eigenvalue, the default, over which the
verdict is. Scores are of the encoder of the first seed, and mean ranks over the encoders of all seeds.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from experiments.study import results
from experiments.study.retraining import EXACT, RIVALS, average, compare, effects, membership
from experiments.study.small import (
    BATCH,
    COLUMNS,
    SIGMA,
    Pictures,
    Result,
    Small,
    alignment_losses,
    complete,
    main,
    minutes,
    read,
)
from influence_ssl_jax import randomness
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.data import LoadedBatch, batches, resident
from influence_ssl_jax.evaluation.exact import curvature_rows, materialise
from influence_ssl_jax.evaluation.statistics import spearman
from influence_ssl_jax.ihvp.backend import Damping, Spectrum, scalar
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.nets.heads import Projector, SelfSupervised
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.scoring.neighbours import find_neighbours
from influence_ssl_jax.scoring.scores import pixel_variance
from influence_ssl_jax.train.probes import Labelled, knn_accuracy
from influence_ssl_jax.types import Batch, Params

AT_ONCE = 32
"""Draws of a loss of all images that are computed at the same time."""
DEFAULT = "0.1 × mean eigenvalue"


class Perceptron(nn.Module):
    """A perceptron with two hidden layers: (Dense–ReLU) × 2, then Dense.

    Attributes:
        hidden: Width of the hidden layers.
        features: Width of the representation.
    """

    hidden: int
    features: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch features"]:
        """Embed images; training and evaluation are the same."""
        del train
        x = images.reshape(images.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.features)(x)


@dataclasses.dataclass(frozen=True)
class Memorised(Small):
    """At which scale perceptrons are trained on halves.

    Attributes:
        hidden: Width of the hidden layers of perceptron and projector.
        features: Width of the representation.
        projected: Width of the projection.
        temperature: Temperature of SimCLR's loss.
        steps: Steps of training; each sees all images.
        rate: Learning rate of Adam.
        cuts: How often the images are cut into two halves, with an encoder each.
        seeds: Seeds of the encoders of all images, whose scores are asked.
        loss_draws: Draws of noise that an alignment loss averages.
        dimensions: ρ.
        rows: Draws of the curvature of the pretraining loss, which couples all images.
    """

    pixels: int = 8
    train: int = 512
    test: int = 2000
    draws: int = 8
    hidden: int = 32
    features: int = 8
    projected: int = 32
    temperature: float = 0.2
    steps: int = 2000
    rate: float = 1e-3
    cuts: int = 64
    seeds: tuple[int, ...] = (0, 42, 123)
    loss_draws: int = 16
    dimensions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
    rows: int = 2048

    def network(self, method: str) -> Network:
        """Return the network up to a depth."""
        projector = Projector(self.hidden, self.projected, normalisation="none")
        module = SelfSupervised(Perceptron(self.hidden, self.features), projector)
        return Network(module, method, mean=(0.5,), std=(0.25,))

    def measurement(self) -> Objective:
        """Return what is scored."""
        return Objective(self.network("encode"), GaussianNoise(SIGMA), CosineDistance())

    def pretraining(self) -> Objective:
        """Return what is trained."""
        return Objective(self.network("project"), GaussianNoise(SIGMA), SimCLR(self.temperature))


@functools.partial(jax.jit, static_argnums=0)
def train(
    scale: Memorised, images: Float[Array, "count height width 3"], members: Int[Array, "encoders some"], seed: int
) -> tuple[Params, Float[Array, " encoders"]]:
    """Train encoders that share their seed, each on some of the images; return parameters and last losses.

    Args:
        scale: The scale.
        images: All images.
        members: The images that each encoder is trained on.
        seed: Decides first parameters and noise.
    """
    objective, optimiser = scale.pretraining(), optax.adam(scale.rate)
    root = randomness.root(0, Stream.INITIALISATION)
    first, noise = jax.random.split(jax.random.fold_in(root, seed))
    params = scale.network("project").module.init(first, images[:2], train=False, method="project")["params"]

    def one(chosen: Int[Array, " some"]) -> tuple[Params, Float[Array, ""]]:
        def step(state: tuple[Params, optax.OptState], number: Int[Array, ""]) -> tuple[Any, Float[Array, ""]]:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(noise, number), chosen)
            batch = Batch(images[chosen], keys, chosen)
            loss, gradient = jax.value_and_grad(objective)(state[0], {}, batch)
            update, moments = optimiser.update(gradient, state[1])
            return (optax.apply_updates(state[0], update), moments), loss

        (trained, _), losses = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(scale.steps))
        return trained, losses[-1]

    return jax.vmap(one)(members)


def trained(scale: Memorised, pictures: Pictures, members: np.ndarray, seed: int) -> list[Params]:
    """Train, and return the parameters of each encoder.

    Raises:
        ValueError: If a loss is not finite in the end.
    """
    images = jnp.asarray(pictures.images, jnp.float32) / 255
    stacked, losses = train(scale, images, jnp.asarray(members), seed)
    if not np.isfinite(np.asarray(losses)).all():
        raise ValueError(f"Seed {seed}: the losses are {losses} after {scale.steps} steps.")
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(members))]


def loaded(pictures: Pictures) -> list[LoadedBatch]:
    """Return all images in batches, with noise that no training has seen and every encoder sees."""
    root = randomness.root(1, Stream.PERTURBATIONS)
    return list(batches(pictures.open(), pictures.to_input(), BATCH, root))


def alignment(scale: Memorised, params: Params, pictures: Pictures) -> np.ndarray:
    """Return the mean cosine distance between the representations of each image and of itself with noise."""
    encoder = {"backbone": params["backbone"]}
    rows = [
        np.asarray(alignment_losses(scale.measurement(), scale.loss_draws, encoder, {}, each.batch))[each.valid]
        for each in loaded(pictures)
    ]
    return np.concatenate(rows)


def halved(scale: Memorised, pictures: Pictures, inside: np.ndarray, seed: int) -> dict[str, Any]:
    """Train on both halves, and return the alignment losses of all images under both encoders."""
    members = np.stack([np.flatnonzero(inside), np.flatnonzero(~inside)])
    return {"noise": np.stack([alignment(scale, each, pictures) for each in trained(scale, pictures, members, seed)])}


def curvatures(scale: Memorised, params: Params, pictures: Pictures) -> dict[str, Problem]:
    """Return the problems whose curvatures scores are taken over, by name, that of the measurement first.

    The pretraining loss couples all images: it is drawn from several times, each time with other noise.
    """
    source, to_input, images = pictures.open(), pictures.to_input(), len(pictures.labels)
    alone = resident(source, to_input, images, BATCH, 0)
    draws, whole = min(AT_ONCE, scale.rows), resident(source, to_input, images, images, 0)
    numbers = jnp.arange(scale.rows // draws)
    keys = jax.vmap(lambda number: jax.vmap(jax.random.fold_in, (0, None))(whole.key[0], number))(numbers)
    images_, indices = (jnp.repeat(jnp.asarray(each), len(numbers), axis=0) for each in (whole.image, whole.index))
    coupled = Batch(images_, keys, indices)
    encoder = {"backbone": params["backbone"]}
    return {
        "measurement": Problem(encoder, {}, alone, scale.measurement(), "fisher", scale.features),
        "pretraining": Problem(params, {}, coupled, scale.pretraining(), "fisher", draws),
    }


def dampings(scale: Memorised) -> dict[str, Damping]:
    """Return the dampings by name: the default, then those by effective dimension."""
    return {DEFAULT: Damping(), **{f"ρ {share:g}": Damping(effective_dimension=share) for share in scale.dimensions}}


class Spectral(NamedTuple):
    """Squared coordinates of gradients along the eigenvectors of a curvature: they give scores for every λ.

    Attributes:
        eigenvalues: μ, those above rounding.
        inside: c², [gradients, eigenvalues].
        outside: Squared norm of what is outside their span, [gradients].
        size: Number of parameters.
    """

    eigenvalues: Float[np.ndarray, " rank"]
    inside: Float[np.ndarray, "n rank"]
    outside: Float[np.ndarray, " n"]
    size: int

    @classmethod
    def of(cls, rows: Float[np.ndarray, "rows size"], gradients: Float[np.ndarray, "n size"]) -> "Spectral":
        """Decompose `C = AᵀA` by the inner products of its rows A, in float64."""
        wide = rows.astype(np.float64)
        values, vectors = np.linalg.eigh(wide @ wide.T)
        kept = values > 1e-9 * values[-1]  # rows are rounded to float32
        basis = (vectors[:, kept] / values[kept] ** 0.5).T @ wide
        squares = (gradients.astype(np.float64) @ basis.T) ** 2
        norms = np.sum(gradients.astype(np.float64) ** 2, axis=1)
        return cls(values[kept], squares, np.maximum(norms - squares.sum(axis=1), 0), rows.shape[1])

    def resolve(self, damping: Damping) -> float:
        """Return λ."""
        if not damping.of_spectrum:
            return float(scalar(damping.resolve(jnp.asarray(self.eigenvalues.sum() / self.size))))
        values = jnp.asarray(self.eigenvalues)
        return float(scalar(damping.resolve_by_spectrum(Spectrum(values, jnp.ones_like(values), resolution=1e-9))))

    def scores(self, damping: float) -> Float[np.ndarray, " n"]:
        """Return `gᵀ(C + λI)⁻¹g`."""
        return self.inside @ (1 / (self.eigenvalues + damping)) + self.outside / damping


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients_of(
    measurement: Objective, draws: int, params: Params, batch: Batch
) -> tuple[Float[Array, "draws batch size"], Float[Array, "draws batch"]]:
    """Return the gradients of the measurement by all parameters, and alignment losses."""
    measured = measure(measurement, params, {}, batch, draws)
    return materialise(measured.gradients).reshape(draws, len(batch.index), -1), measured.values


def scored(scale: Memorised, params: Params, pictures: Pictures) -> Result:
    """Return every score of each image and λ of each, then the rivals."""
    told = Result()
    for name, problem in curvatures(scale, params, pictures).items():
        parts = [
            jax.tree.map(
                lambda leaf, valid=each.valid: np.asarray(leaf)[:, valid],
                gradients_of(scale.measurement(), scale.draws, problem.params, each.batch),
            )
            for each in loaded(pictures)
        ]
        gradients, losses = (np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))
        flat = gradients.reshape(-1, gradients.shape[-1])
        spectral = Spectral.of(curvature_rows(problem), flat)
        for label, damping in dampings(scale).items():
            resolved = spectral.resolve(damping)
            told[f"{name}, {label}"] = spectral.scores(resolved).reshape(scale.draws, -1).mean(axis=0)
            told[f"λ of {name}, {label}"] = np.asarray(resolved)
        told[COLUMNS["alignment_loss"]] = losses.mean(axis=0)
        told[COLUMNS["gradient_norm"]] = np.mean(np.sum(gradients**2.0, axis=2), axis=0) ** 0.5
    images = jnp.asarray(pictures.images, jnp.float32) / 255
    embeddings = np.asarray(scale.network("encode")({"backbone": params["backbone"]}, {}, images))
    told[COLUMNS["pixel_variance"]] = np.asarray(pixel_variance(images))
    told[COLUMNS["knn_distance"]] = find_neighbours(embeddings.astype(np.float32)).distance
    return told


def accuracies(scale: Memorised, params: Params, bank: Pictures, test: Pictures) -> dict[str, float]:
    """Return the accuracy of the 20 nearest neighbours on test images: of representations and of pixels."""
    network, encoder = scale.network("encode"), {"backbone": params["backbone"]}
    pixels = [np.asarray(part.images, np.float32) / 255 for part in (bank, test)]
    embeddings = [np.asarray(network(encoder, {}, jnp.asarray(part))) for part in pixels]
    flat = [part.reshape(len(part), -1) - pixels[0].mean() for part in pixels]
    return {
        name: knn_accuracy(Labelled(known, bank.labels), Labelled(asked, test.labels))
        for name, (known, asked) in {"representations": embeddings, "pixels": flat}.items()
    }


def whole(scale: Memorised, pictures: Pictures, test: Pictures, seed: int) -> dict[str, Any]:
    """Train an encoder on all images, and return what it says of each, and its accuracies."""
    (params,) = trained(scale, pictures, np.arange(len(pictures.labels))[None], seed)
    told = {f"accuracy, {name}": value for name, value in accuracies(scale, params, pictures, test).items()}
    return {**scored(scale, params, pictures), **told}


def plan(scale: Memorised) -> dict[str, Callable[[], Mapping[str, Any]]]:
    """Return all jobs by name: the encoders of halves, and what those of all images say."""
    pictures, test = read(scale, "train"), read(scale, "test")
    inside = membership(len(pictures.labels), scale.cuts)
    halves = {
        f"cut_{cut:03d}": functools.partial(halved, scale, pictures, inside[cut], 1000 + cut)
        for cut in range(scale.cuts)
    }
    wholes = {f"whole_{seed}": functools.partial(whole, scale, pictures, test, seed) for seed in scale.seeds}
    return {**halves, **wholes}


def over_dampings(
    scale: Memorised, name: str, effect: Float[np.ndarray, " images"], first: Result, mean: Result, resamples: int
) -> dict[str, Any]:
    """Return how well scores over one curvature rank the effect, for every damping.

    Args:
        scale: The scale.
        name: The curvature.
        effect: The effect of each image.
        first: What the encoder of the first seed says.
        mean: Mean ranks over the encoders of all seeds.
        resamples: Bootstrap draws of images.
    """
    keys = {label: f"{name}, {label}" for label in dampings(scale)}

    def ranks(effect: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
        return {label: spearman(effect, column) for label, column in zip(keys, columns, strict=True)}

    def gains(effect: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
        every = ranks(effect, *columns)
        return {label: value - every[DEFAULT] for label, value in every.items() if label != DEFAULT}

    def tell(statistics: Callable[..., dict[str, float]], of: Result) -> dict[str, results.Estimate]:
        return results.resampled(statistics, effect, *(of[key] for key in keys.values()), resamples=resamples)

    norms = first[COLUMNS["gradient_norm"]]
    return {
        "λ": {label: float(first[f"λ of {key}"]) for label, key in keys.items()},
        "spearman": tell(ranks, first),
        "spearman less that of the default": tell(gains, first),
        "spearman of the mean rank over seeds": tell(ranks, mean),
        "spearman with the gradient norm": {label: spearman(first[key], norms) for label, key in keys.items()},
    }


def compared(scale: Memorised, answers: dict[str, Result], inside: np.ndarray, resamples: int) -> dict[str, Any]:
    """Return the record of all results."""
    wholes = [answers[f"whole_{seed}"] for seed in scale.seeds]
    losses = np.stack([each["noise"] for name, each in sorted(answers.items()) if name.startswith("cut_")])
    effect = effects(losses, inside)
    predictors = [{EXACT: each[f"measurement, {DEFAULT}"], **{name: each[name] for name in RIVALS}} for each in wholes]
    first, mean = wholes[0], average(wholes)
    by_damping = {
        name: over_dampings(scale, name, effect.mean(axis=0), first, mean, resamples)
        for name in ("measurement", "pretraining")
    }
    return {
        "images": inside.shape[1],
        "encoders": 2 * len(inside),
        "accuracy": {
            name: float(np.mean([each[f"accuracy, {name}"] for each in wholes]))
            for name in ("representations", "pixels")
        },
        "found": {
            "noise": {
                "alignment loss": {
                    "trained on": float(np.mean(np.where(inside, losses[:, 0], losses[:, 1]))),
                    "left out": float(np.mean(np.where(inside, losses[:, 1], losses[:, 0]))),
                },
                **compare(effect, predictors[0], average(predictors), resamples),
            }
        },
        "dampings": by_damping,
    }


def draw(record: dict[str, Any]) -> Figure:
    """Draw the rank correlation with the effect: over dampings by curvature, and of the rivals."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, (name, damped) in zip(("C3", "C0"), record["dampings"].items(), strict=True):
        ranks = {label: value for label, value in damped["spearman"].items() if label != DEFAULT}
        shares = [float(label.removeprefix("ρ ")) for label in ranks]
        values, lows, highs = np.asarray(list(ranks.values())).T
        left.plot(shares, values, color=colour, marker="o", ms=4, label=f"curvature of the {name}")
        left.fill_between(shares, lows, highs, color=colour, alpha=0.2, lw=0)
    left.set(xscale="log", xlabel="effective dimension ρ (λ falls)", ylabel="Spearman with the effect", title="scores")
    left.legend(frameon=False, fontsize=8)
    estimates = record["found"]["noise"]
    for place, (name, (value, low, high)) in enumerate(estimates["spearman"].items()):
        colour = "C3" if name == EXACT else "0.3"
        right.plot([place, place], [low, high], color=colour, lw=1.5)
        right.plot(place, value, "o", color=colour, ms=4)
    right.set_xticks(
        range(len(estimates["spearman"])), [name.replace(" ", "\n") for name in estimates["spearman"]], fontsize=7
    )
    right.set(title="default damping, rivals")
    for axes in (left, right):
        axes.axhline(0, color="0.7", lw=0.8)
        axes.axhline(estimates["ceiling"], color="0.5", ls="--", lw=1)
    return figure


def find(scale: Memorised, resamples: int = 1000) -> tuple[dict[str, Any], Figure]:
    """Train, score, compare and draw."""
    answers = complete(scale, plan(scale))
    record = compared(scale, answers, membership(scale.train, scale.cuts), resamples)
    return {"minutes": minutes(answers.values()), **record}, draw(record)


if __name__ == "__main__":
    main("memorised", Memorised, find)
