"""Do this package and its peers compute the same numbers, once they are asked the same question?

    python -m benchmarks.agreement

One ResNet-18, the same weights, images and views, float64 (the forward pass in float32 too). Every figure is a worst
relative error, beside the tolerance that it must meet. What it takes for the questions to be the same is each peer's
convention: `docs/peers.md`. About four minutes on two cores.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.conventions import differences, questions
from benchmarks.results import Finding, write
from benchmarks.shared import MEAN, STD, Setting, Shared, random_vector, shared
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import contributions
from influence_ssl_jax.curvature.moments import factor_moments
from influence_ssl_jax.curvature.products import matvec
from influence_ssl_jax.ihvp import EKFAC, KFAC, LoGra
from influence_ssl_jax.ihvp.eigenbasis import project
from influence_ssl_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        setting: Network and images.
        rank: Of the projections.
    """

    setting: Setting = dataclasses.field(default_factory=lambda: Setting(examples=32, batch=16))
    rank: int = 8

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings that run the parts of JAX in seconds."""
        return cls(Setting("linear", width=4, examples=4, batch=2, size=4), rank=2)


class Ours(NamedTuple):
    """This package's numbers, by torch's module names and in torch's layout where a peer has its own.

    Attributes:
        gradient: Of the mean loss over all examples, by torch's parameter names.
        products: C v of the Hessian and the GGN of the mean loss.
        vector: The v.
        squared_norms: ‖g‖² of every example over every parameter.
        factors: (A, S) of every convolution.
        projections: Bases of every convolution (reads, writes).
        projected: Projected gradients of every example, by module.
        scores: Self-influence, by the convention that it is in.
        rows: By module: rows per example, over positions and views.
    """

    gradient: dict
    products: dict[str, dict]
    vector: dict
    squared_norms: np.ndarray
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    projections: dict[str, tuple[np.ndarray, np.ndarray]]
    projected: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    rows: dict[str, int]


def ours(given: Shared, config: Config) -> Ours:
    """Compute everything that is compared, with this package."""
    problem, number = given.problem(), len(given.batches.index)
    blocks = cut.discover(given.objective.network, given.params, given.frozen, given.batches.image.shape[2:])
    matrices = tuple(block for block in blocks if isinstance(block, cut.MatrixBlock))
    backends = {"kfac": KFAC(), "ekfac": EKFAC(), "logra": LoGra(config.rank)}
    states, factors = jax.jit(
        lambda problem: (
            {name: backend.fit(problem, jax.random.key(2)) for name, backend in backends.items()},
            factor_moments(problem, blocks, 1),
        )
    )(problem)
    rows = positions(given, matrices)
    asked = questions(states, matrices, rows)

    @jax.jit
    def of_batch(batch: Batch) -> dict[str, Any]:
        parts = contributions(problem, batch)  # 1/√b of each gradient, in the very views that the peers are given
        gradients = dataclasses.replace(parts, cotangents=parts.cotangents * len(batch.index) ** 0.5)
        return {
            "squared_norms": gradients.squared_norms(blocks),
            "gradient": jax.grad(given.objective)(given.params, given.frozen, batch),
            "projected": project(gradients, matrices, states["logra"].bases),
            "scores": {name: LoGra().quadratic_form(state, gradients, damping) for name, (state, damping) in asked},
        }

    batches = [of_batch(jax.tree.map(lambda leaf, i=i: leaf[i], given.batches)) for i in range(number)]
    vector = random_vector(given.params)
    products = {name: dataclasses.replace(problem, curvature=name) for name in ("hessian", "ggn")}
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[_without(batch, "gradient") for batch in batches])
    return Ours(
        jax.tree.map(lambda *leaves: sum(leaves) / number, *[batch["gradient"] for batch in batches]),
        {name: jax.jit(lambda vector, p=p: matvec(p)(vector))(vector) for name, p in products.items()},
        vector,
        together["squared_norms"],
        {name: (np.asarray(a[0]), np.asarray(s[0])) for name, (a, s) in factors.items()},
        {block.name: tuple(np.asarray(side[0]) for side in states["logra"].bases[block.name]) for block in matrices},
        together["projected"],
        together["scores"],
        rows,
    )


def positions(given: Shared, matrices: tuple[cut.MatrixBlock, ...]) -> dict[str, int]:
    """Count the rows per example of every block, over positions and views."""
    problem, first = given.problem(), jax.tree.map(lambda leaf: leaf[0], given.batches)

    def every() -> dict[str, Array]:
        gradients = contributions(problem, first)
        return {block.name: block.rows(gradients)[0] for block in matrices}

    rows = jax.eval_shape(every)
    return {name: leaf.shape[1] for name, leaf in rows.items()}


def run(config: Config) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Compare with every peer, and measure what conventions do to scores."""
    from benchmarks.peers import compare  # torch is an extra: the JAX side runs without it

    given = shared(config.setting, jnp.float64)
    mine = ours(given, config)
    with tempfile.TemporaryDirectory() as folder:
        findings = compare.against(given, mine, (MEAN, STD), config, Path(folder))
    return findings, differences(mine.scores)


def main() -> None:
    """Compare, print, write."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles three times as fast, computes the same
    config = Config()
    findings, changed = run(config)
    for finding in findings:
        print(f"{finding.peer:20} {finding.quantity:36} {finding.value:.1e} (tolerance {finding.tolerance:.0e})")
    write("agreement", config, {"findings": [finding._asdict() for finding in findings], "differences": changed})
    wrong = [f"{finding.peer}: {finding.quantity}" for finding in findings if not finding.holds]
    if wrong:
        raise SystemExit(f"Out of tolerance: {'; '.join(wrong)}")


def _without(entries: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != name}


if __name__ == "__main__":
    main()
