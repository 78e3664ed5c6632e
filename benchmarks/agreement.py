"""Do this package and its peers compute the same numbers, once they are asked the same question?

    python -m benchmarks.agreement

One ResNet-18, the same weights, images and views, float64 (the forward pass in float32 too). Every figure is a worst
relative error, beside the tolerance that it must meet. What it takes for the questions to be the same is each peer's
convention: `docs/peers.md`. About four minutes on two cores.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.results import Finding, write
from benchmarks.shared import MEAN, STD, Setting, Shared, shared
from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import contributed, measured
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.curvature.matvec import matvec
from influence_ssl_jax.curvature.moments import factor_moments
from influence_ssl_jax.ihvp import EKFAC, KFAC, LoGra
from influence_ssl_jax.ihvp.bases import project
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisState
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        setting: Network and images.
        rank: Of the projections.
    """

    setting: Setting = Setting(examples=64, batch=32)
    rank: int = 8

    @classmethod
    def tiny(cls) -> "Config":
        """Seconds, not minutes: the parts of JAX run in the tests."""
        return cls(Setting(width=4, examples=4, batch=2, size=8), rank=2)


class Ours(NamedTuple):
    """This package's numbers, by torch's module names and in torch's layout where a peer has its own.

    Attributes:
        embeddings: Of all views.
        gradient: Of the mean loss over all examples, by torch's parameter names.
        products: C v of the Hessian and the GGN of the mean loss.
        vector: The v.
        squared_norms: ‖g‖² of every example over every parameter.
        factors: (A, S) of every convolution.
        projections: Bases of every convolution (reads, writes).
        projected: Projected gradients of the first batch, by module.
        scores: Self-influence over the convolutions alone, by the peer whose convention they are in.
    """

    embeddings: np.ndarray
    gradient: dict
    products: dict[str, dict]
    vector: dict
    squared_norms: np.ndarray
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    projections: dict[str, tuple[np.ndarray, np.ndarray]]
    projected: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


def convolutions(state: EigenbasisState) -> EigenbasisState:
    """The state without BatchNorm's parameters, which no peer has."""
    return dataclasses.replace(state, blocks=tuple(b for b in state.blocks if isinstance(b, cut.MatrixBlock)))


def own_mean(state: EigenbasisState) -> dict[str, jax.Array]:
    """A tenth of the mean of the eigenvalues that a block's state holds: the peers' damping, per module."""
    return {name: 0.1 * jnp.mean(values) for name, values in state.eigenvalues.items()}


def positions(given: Shared) -> dict[str, int]:
    """By block: rows per example, over positions and views."""
    gradients = jax.eval_shape(lambda batch: contributed(given.problem(), batch), _batch(given, 0))
    rows = jax.eval_shape(lambda g: {b.name: b.rows(g)[0] for b in _matrices(given)}, gradients)
    return {name: leaf.shape[1] for name, leaf in rows.items()}


def ours(given: Shared, config: Config) -> Ours:
    """Everything that is compared, from this package."""
    problem, number = given.problem(), len(given.batches.index)
    vector = trees.normal_like(jax.random.key(1), given.params)

    def over(batches: Batch, function) -> list:
        compiled = jax.jit(function)
        return [compiled(jax.tree.map(lambda leaf, i=i: leaf[i], batches)) for i in range(number)]

    def gradients(batch: Batch) -> ExampleGradients:
        return measured(given.objective, given.params, given.frozen, batch).gradients

    key, every = jax.random.key(2), cut.discover(problem.objective.network, given.params, given.frozen, _shape(given))
    factors = jax.jit(lambda problem: factor_moments(problem, every, 1))(problem)
    kfac, ekfac, logra = (
        convolutions(jax.jit(backend.fit)(problem, key)) for backend in (KFAC(), EKFAC(), LoGra(config.rank))
    )
    rows = positions(given)
    understated = {name: values / rows.get(name, 1) for name, values in kfac.eigenvalues.items()}
    peers = {
        "kronfluence EK-FAC": (EKFAC(), ekfac),
        "kronfluence K-FAC": (KFAC(), dataclasses.replace(kfac, eigenvalues=understated)),
        "K-FAC": (KFAC(), kfac),
        "LogIX": (LoGra(config.rank), logra),
    }
    scores = {
        name: np.concatenate(over(given.batches, lambda b, p=p, s=s: p.quadratic_form(s, gradients(b), own_mean(s))))
        for name, (p, s) in peers.items()
    }
    norms = over(given.batches, lambda batch: gradients(batch).squared_norms(every))
    losses = over(given.batches, lambda batch: jax.grad(given.objective)(given.params, given.frozen, batch))
    products = {
        name: jax.jit(matvec(dataclasses.replace(problem, curvature=name)))(vector) for name in ("hessian", "ggn")
    }
    projected = jax.jit(lambda batch: project(gradients(batch), _matrices(given), logra.bases))(_batch(given, 0))
    return Ours(
        np.stack([given.objective.network(given.params, given.frozen, jnp.asarray(view)) for view in given.views]),
        jax.tree.map(lambda *leaves: sum(leaves) / number, *losses),
        products,
        vector,
        np.concatenate(norms),
        {name: (np.asarray(a[0]), np.asarray(s[0])) for name, (a, s) in factors.items()},
        {block.name: tuple(np.asarray(side[0]) for side in logra.bases[block.name]) for block in _matrices(given)},
        {name: np.asarray(value) for name, value in projected.items()},
        {name: np.asarray(value) for name, value in scores.items()},
    )


def run(config: Config) -> list[Finding]:
    """Worst relative errors against every peer."""
    from benchmarks.peers import compare  # torch is an extra: the JAX side runs without it

    given = shared(config.setting, jnp.float64)
    with tempfile.TemporaryDirectory() as folder:
        return compare.against(given, ours(given, config), (MEAN, STD), positions(given), config, Path(folder))


def main() -> None:
    """Compare, print, write."""
    jax.config.update("jax_enable_x64", True)
    config = Config()
    found = run(config)
    for finding in found:
        print(f"{finding.peer:20} {finding.quantity:36} {finding.value:.1e} (tolerance {finding.tolerance:.0e})")
    write("agreement", config, {"findings": [finding._asdict() for finding in found]})
    wrong = [f"{finding.peer}: {finding.quantity}" for finding in found if not finding.holds]
    if wrong:
        raise SystemExit(f"Out of tolerance: {'; '.join(wrong)}")


def _batch(given: Shared, i: int) -> Batch:
    return jax.tree.map(lambda leaf: leaf[i], given.batches)


def _shape(given: Shared) -> tuple[int, ...]:
    return given.batches.image.shape[2:]


def _matrices(given: Shared) -> tuple[cut.MatrixBlock, ...]:
    every = cut.discover(given.objective.network, given.params, given.frozen, _shape(given))
    return tuple(block for block in every if isinstance(block, cut.MatrixBlock))


if __name__ == "__main__":
    main()
