"""Does a score predict what retraining does? Known truth on small problems, by backend, null baseline and peer.

    python -m benchmarks.fidelity

Training minimises `(1/n) Σ ℓ_i(θ) + λ/2 ‖θ − θ₀‖²` to convergence in float64, so the truth is a number and not a draw.
Left out one at a time: predicted `gᵀ(C + λI)⁻¹g / n` against the actual rise of the example's own loss, for 50 examples.
Half-size subsets: predicted `−Σ_{i∈S} g_testᵀ(C + λI)⁻¹g_i` against the actual mean test loss after training on S, for
50 subsets. Spearman's ρ with bootstrap intervals. The convnet is trained from three initial points θ₀: the correlation of
the truths of two of them is the ceiling of any method that does not know θ₀. About eight minutes on two cores.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks.fidelity_tasks import Task, task
from benchmarks.results import spread, write
from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import contributions
from influence_ssl_jax.evaluation.statistics import bootstrap, spearman
from influence_ssl_jax.ihvp import EKFAC, KFAC, Backend, Damping, Diagonal, Exact, Identity, LoGra
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.scoring.scores import pixel_variance
from influence_ssl_jax.types import Batch

BACKENDS: dict[str, tuple[Backend, str]] = {
    "Exact, Hessian": (Exact(), "hessian"),
    "Exact, Gauss–Newton": (Exact(), "ggn"),
    "EK-FAC": (EKFAC(samples=16), "ggn"),
    "EK-FAC, rank 4": (EKFAC(rank=4, samples=16), "ggn"),
    "K-FAC": (KFAC(samples=16), "ggn"),
    "LoGra, rank 8": (LoGra(rank=8, samples=16), "ggn"),
    "LoGra, rank 4, complement kept": (LoGra(rank=4, complement="keep", samples=16), "ggn"),
    "Diagonal": (Diagonal(samples=16), "ggn"),
    "Identity": (Identity(), "ggn"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes.

    Attributes:
        tasks: Which problems.
        examples: Training examples, and as many for the test loss.
        ridge: λ as a multiple of the mean eigenvalue of C at θ₀.
        left_out: Examples that are left out, one at a time.
        subsets: Half-size subsets.
        seeds: Initial points of the convnet.
        size: Height and width of an image.
        backends: Which backends.
        peers: Whether dattri, kronfluence and LogIX's definition take part, on the logistic regression.
    """

    tasks: tuple[str, ...] = ("linear", "logistic", "convnet")
    examples: int = 200
    ridge: float = 1.0
    left_out: int = 50
    subsets: int = 50
    seeds: int = 3
    size: int = 8
    backends: tuple[str, ...] = tuple(BACKENDS)
    peers: bool = True

    @classmethod
    def tiny(cls) -> "Config":
        """Return the linear problem under a strong ridge.

        The first order is nearly the truth there.
        """
        return cls(
            ("linear",),
            examples=12,
            ridge=1000.0,
            left_out=8,
            subsets=8,
            seeds=1,
            size=4,
            backends=("Exact, Gauss–Newton", "Identity"),
            peers=False,
        )


class Truth(NamedTuple):
    """What retraining does.

    Attributes:
        left_out: Rise of each example's own loss when it is left out.
        subsets: Mean test loss after training on each subset.
        gradient: Largest entry of the gradient at which any training ended.
    """

    left_out: np.ndarray
    subsets: np.ndarray
    gradient: float


def truth(given: Task, config: Config) -> Truth:
    """Retrain without each example, and on each subset."""
    here, worst, rises = given.trainer.values(given.problem.params), 0.0, []
    for i in range(config.left_out):
        weights = np.ones(config.examples)
        weights[i] = 0
        params, gradient = given.trainer.fit(weights, given.problem.params)
        rises.append(given.trainer.values(params)[i] - here[i])
        worst = max(worst, gradient)
    losses = []
    for chosen in given.subsets[: config.subsets]:
        params, gradient = given.trainer.fit(2.0 * chosen, given.problem.params)
        losses.append(given.trainer.mean_loss(params, given.test))
        worst = max(worst, gradient)
    return Truth(np.asarray(rises), np.asarray(losses), worst)


def predictions(given: Task, config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predict the rises and the test losses of subsets, by method.

    Rises are those of the left-out examples. Losses are known up to a constant.
    """
    number, predicted = config.examples, {}
    for name in config.backends:
        backend, curvature = BACKENDS[name]
        problem = dataclasses.replace(given.problem, curvature=curvature)
        state = jax.jit(backend.fit)(problem, jax.random.key(0))
        damping = backend.resolve(state, Damping(absolute=given.ridge))
        train = jax.tree.map(lambda leaf: leaf[0], problem.batches)
        own, cross = jax.jit(_forms(backend, problem))(state, damping, train, given.test)
        # contributions are gradients over the root of their number
        predicted[name] = (np.asarray(own)[: config.left_out], -(given.subsets @ np.asarray(cross)) / number)
    images = given.problem.batches.image[0]
    losses = given.trainer.values(given.problem.params)
    rng = np.random.default_rng(1)
    for name, value in {
        "null: own loss": losses,
        "null: pixel variance": np.asarray(pixel_variance(images)),
        "null: random": rng.normal(size=number),
    }.items():
        predicted[name] = (value[: config.left_out], -(given.subsets @ value) / number)
    return predicted


def _forms(backend: Backend, problem: Problem) -> Callable[..., tuple[Array, Array]]:
    def forms(state: Any, damping: Any, train: Batch, test: Batch) -> tuple[Array, Array]:
        left, right = contributions(problem, train), contributions(problem, test)
        return backend.quadratic_form(state, left, damping), jnp.sum(
            backend.bilinear_form(state, left, right, damping), axis=1
        )

    return forms


def compare(predicted: dict[str, tuple[np.ndarray, np.ndarray]], actual: Truth) -> list[dict[str, Any]]:
    """Return one row for each method.

    It has Spearman's ρ with an interval, and the median of predicted over actual.
    """
    rows = []
    for name, (own, subsets) in predicted.items():
        missing = int(np.sum(~np.isfinite(own)))
        if missing:
            rows.append({"method": f"{name}: {missing} of {len(own)} not finite", "left_out": None})
            continue
        row = {"method": name, "left_out": bootstrap(spearman, own, actual.left_out)}
        if not name.startswith("null"):
            row["predicted_over_actual"] = float(np.median(own / actual.left_out))
        if len(subsets):
            row["subsets"] = bootstrap(spearman, subsets, actual.subsets)
        rows.append(row)
    return rows


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Yield the result of every task."""
    for name in config.tasks:
        yield of_task(name, config)


def of_task(name: str, config: Config) -> dict[str, Any]:
    """Compare every method with the truth of one task."""
    given = task(name, 0, config)
    actual = truth(given, config)
    others = []
    for seed in range(1, config.seeds if name == "convnet" else 1):
        other = truth(task(name, seed, config), dataclasses.replace(config, subsets=0))
        others.append(spearman(actual.left_out, other.left_out))
    predicted = predictions(given, config)
    if name == "logistic" and config.peers:
        from benchmarks.peers import dattri_logistic, logistic  # torch is an extra

        for peer in (dattri_logistic, logistic):
            predicted |= peer.predictions(given, config.left_out)
    return {
        "task": name,
        "parameters": trees.size(given.problem.params),
        "ridge": given.ridge,
        "largest_gradient": actual.gradient,
        "seed_to_seed": others,
        "rows": compare(predicted, actual),
    }


def main() -> None:
    """Measure, print, write."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # far more is compiled here than computed
    config = tyro.cli(Config)
    for task_record in run(config):
        print(
            f"{task_record['task']}: largest gradient {task_record['largest_gradient']:.1e}, "
            f"seeds {task_record['seed_to_seed']}"
        )
        for row in task_record["rows"]:
            print(f"  {row['method']:44} {spread(row['left_out']):24} {spread(row.get('subsets'))}")
        write(f"fidelity_{task_record['task']}", config, task_record)


if __name__ == "__main__":
    main()
