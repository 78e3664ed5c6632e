"""Which networks does which backend take, how are their parameters read, and how exactly?

    python -m benchmarks.networks

Every network of `tests/curvature/networks.py`, in float64. The error is the largest of a block's per-example gradients
and of their squared norms against `vmap(grad)`, relative to the largest entry. A backend takes a network if its fit can be
traced; otherwise its words are printed once below the table.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.results import read, write
from influence_ssl_jax import trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.ihvp import BACKENDS
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.types import Batch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # as pytest does
from curvature.networks import CASES, SHAPE, Case


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tried.

    Attributes:
        networks: Names of the networks; all where empty.
        backends: Whether every backend's fit is traced too.
    """

    networks: tuple[str, ...] = ()
    backends: bool = True

    @classmethod
    def tiny(cls) -> "Config":
        """Return settings with one network."""
        return cls(("mlp",), backends=False)


def errors(case: Case, blocks: cut.Blocks) -> float:
    """Return the largest relative errors of gradients and squared norms."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(2, 3, *SHAPE)))
    like = jax.eval_shape(case.network, case.params, case.frozen, images[0])
    cotangents = jnp.asarray(rng.normal(size=(2, 3, like.shape[1])), like.dtype)
    gradients = ExampleGradients(case.params, case.frozen, images, cotangents, case.network)

    @jax.jit
    def both(gradients: ExampleGradients) -> tuple[jax.Array, jax.Array]:
        whole = gradients.full()
        differences = [jnp.max(jnp.abs(b.materialise(gradients) - jax.vmap(b.read)(whole))) for b in blocks]
        rows = trees.ravel_batch(whole)
        norms = jnp.sum(rows**2, axis=1)
        missed = jnp.max(jnp.abs(gradients.squared_norms(blocks) - norms)) / jnp.max(norms)
        return jnp.max(jnp.stack(differences)) / jnp.max(jnp.abs(rows)), missed

    return float(max(both(gradients)))


def refusals(case: Case) -> dict[str, str]:
    """Return the errors of the backends that refuse the network."""
    rng, reasons = np.random.default_rng(0), {}
    keys = jax.random.split(jax.random.key(0), (1, 4))
    batch = Batch(jnp.asarray(rng.uniform(size=(1, 4, *SHAPE))), keys, jnp.arange(4).reshape(1, 4))
    objective = Objective(case.network, GaussianNoise(0.1), CosineDistance())  # pyright: ignore[reportArgumentType]
    problem = Problem(case.params, case.frozen, batch, objective)
    for kind in BACKENDS:
        try:
            jax.eval_shape(
                lambda problem, key, kind=kind: jax.tree.leaves(kind().fit(problem, key)), problem, keys[0, 0]
            )
        except StructureError as error:
            reasons[kind.__name__] = str(error)
    return reasons


def row(name: str, backends: bool) -> dict:
    """Measure one network."""
    case = CASES[name]()
    blocks = cut.discover(case.network, case.params, case.frozen, SHAPE, "materialise")
    program = ExampleGradients(
        case.params, case.frozen, jnp.zeros((1, 1, *SHAPE)), jnp.zeros((1, 1, 1)), case.network
    ).program
    matrices = [block for block in blocks if isinstance(block, cut.MatrixBlock)]
    return {
        "network": name,
        "matrices": sum(not block.formed(program) for block in matrices),
        "whole": sum(block.formed(program) for block in matrices),
        "vectors": len(blocks) - len(matrices),
        "loose": sorted(case.loose),
        "error": errors(case, blocks),
        "refused": refusals(case) if backends else {},
    }


def run(config: Config) -> dict:
    """Return one row for each network."""
    rows = []
    for name in config.networks or tuple(CASES):
        rows.append(row(name, config.backends))
        each = rows[-1]
        words = ", ".join(each["refused"]) or "-"
        print(
            f"| `{name}` | {each['matrices']} | {each['whole']} | {each['vectors']} | {', '.join(each['loose']) or '-'} "
            f"| {each['error']:.0e} | {words} |",
            flush=True,
        )
    return {"networks": rows}


def merged(before: dict | None, now: dict) -> dict:
    """Join the rows of an earlier run with those of this one.

    Rows are in the order of the networks; those that this run has measured again replace the earlier ones.
    """
    rows = {each["network"]: each for record in (before or {"networks": []}, now) for each in record["networks"]}
    return {"networks": [rows[name] for name in CASES if name in rows]}


def main() -> None:
    """Measure, print, write; what an earlier run found of other networks is kept."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # programs that run once
    config = tyro.cli(Config)
    write("networks", config, merged(read("networks"), run(config)))


if __name__ == "__main__":
    main()
