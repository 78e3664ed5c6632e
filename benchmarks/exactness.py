"""How exact are the products and the solves? Worst relative errors against dense float64, as one table.

    python benchmarks/exactness.py

Every loss × curvature on a convolutional network with BatchNorm (240 parameters); then CG, and LoGra in its exact regime
(full rank, one layer), against dense solves. About three minutes on two cores, nearly all of it compiling. Expected:
products to 1e-11, solves to 1e-10.
"""

import json
import os
import sys
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiles three times as fast, computes the same
sys.path[:0] = [str(Path(__file__).parents[1])]

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.curvature.products import matvec
from influence_ssl_jax.ihvp import CG, Damping, LoGra
from influence_ssl_jax.losses import CosineDistance, SquaredEuclid
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.provenance import device, versions
from tests import problems
from tests.curvature.dense import dense

VECTORS = 20
OUT = Path(__file__).parent / "results" / "exactness.json"


def vectors(problem: Problem) -> np.ndarray:
    """Draw random right-hand sides, one in each row."""
    return np.random.default_rng(0).normal(size=(VECTORS, trees.size(problem.params)))


def product_error(problem: Problem) -> float:
    """Return the worst relative error of `C v`."""
    rows, product = vectors(problem), jax.jit(matvec(problem))
    got = np.stack([trees.ravel(product(trees.unravel(problem.params, jnp.asarray(row)))) for row in rows])
    return worst(got, rows @ np.asarray(dense(problem)))


def solve_error(problem: Problem, backend: CG | LoGra) -> float:
    """Return the worst relative error of `(C + λI)⁻¹ v`."""
    matrix, rows = np.asarray(dense(problem)), vectors(problem)
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    damping = backend.resolve(state, Damping(absolute=0.1 * float(np.trace(matrix)) / len(matrix)))
    solve = jax.jit(backend.solve)
    got = np.stack(
        [trees.ravel(solve(state, trees.unravel(problem.params, jnp.asarray(row)), damping)) for row in rows]
    )
    return worst(got, np.linalg.solve(matrix + float(damping) * np.eye(len(matrix)), rows.T).T)


def form_error(problem: Problem, backend: CG | LoGra) -> float:
    """Return the worst relative error of `gᵀ(C + λI)⁻¹g` over a batch."""
    matrix = np.asarray(dense(problem))
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    damping = backend.resolve(state, Damping(absolute=0.1 * float(np.trace(matrix)) / len(matrix)))
    objective = problems.objective(CosineDistance(), problem.objective.network.module)
    batch = problems.first_batch(problem)
    gradients = jax.jit(lambda batch: measure(objective, problem.params, problem.frozen, batch).gradients)(batch)
    got = np.asarray(jax.jit(backend.quadratic_form)(state, gradients, damping))
    rows = np.asarray(trees.ravel_batch(gradients.full()))
    want = np.sum(rows * np.linalg.solve(matrix + float(damping) * np.eye(len(matrix)), rows.T).T, axis=1)
    return float(np.max(np.abs(got / want - 1)))


def worst(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest relative error of a row."""
    return float(np.max(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)))


def main() -> None:
    """Measure, print, write."""
    errors = {}
    for loss in problems.LOSSES:
        for curvature in ("ggn", "fisher", "empirical_fisher", "hessian"):
            name = f"product · {type(loss).__name__} · {curvature}"
            errors[name] = product_error(problems.problem(loss, curvature))
            print(f"{name:48} {errors[name]:.1e}", flush=True)
    small = problems.problem(CosineDistance(), module=problems.ConvNet(width=3, outputs=3))
    single = problems.problem(SquaredEuclid(), "empirical_fisher", problems.Linear(), image=3)
    cg, logra = CG(tolerance=1e-13, iterations=2000), LoGra(rank=1000)
    for name, problem, backend in (("CG · convolutional", small, cg), ("LoGra · full rank, one layer", single, logra)):
        errors[f"solve · {name}"] = solve_error(problem, backend)
        errors[f"quadratic form · {name}"] = form_error(problem, backend)
        print(f"{name:48} {errors[f'solve · {name}']:.1e} {errors[f'quadratic form · {name}']:.1e}", flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    record = {"worst relative error": errors, "machine": {"cores": os.cpu_count(), **device()}, "versions": versions()}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
