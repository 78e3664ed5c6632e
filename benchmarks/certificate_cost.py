"""How many products with C does a certified score cost, and what does a good start save?

    python benchmarks/certificate_cost.py

A small convolutional encoder (1,112 parameters) trained by SimCLR on the bundled digits; bounds of the scores of 24
other digits by Gauss–Radau quadrature, to a relative width of 5 % and 1 %, at λ = 0.1 and 0.01 × the mean eigenvalue,
from the gradient itself and from what a backend's solution leaves of it. Per start: the products that all share (those
of its fit) and those of each example, the one that makes the residual included. Two minutes on two quiet cores.

Expected at 5 % and 0.1: 19 products from the gradient, 10 from the Galerkin solution in 40 shared Ritz vectors (80
products, less than 9 examples' worth), 7 from 80 of them; 18 or 19 from EK-FAC, Deflated or Ritz vectors with their
complement, whose residuals have parts everywhere. Every interval holds the dense value.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path[:0] = [str(Path(__file__).parents[1])]

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.products import flat_products
from influence_ssl_jax.evaluation.certificate import refine, solve_and_multiply
from influence_ssl_jax.ihvp import EKFAC, Arnoldi, Backend, Deflated, Exact
from influence_ssl_jax.linalg.quadrature import Bounds, quadratic_form_bounds
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.provenance import versions
from tests.ihvp.trained import scored, trained

OUT = Path(__file__).parent / "results" / "certificate_cost.json"
KEY = jax.random.key(1)
STEPS = 80
STARTS: dict[str, tuple[Backend | None, int]] = {
    "gradient": (None, 0),
    **{f"Galerkin, {rank} vectors": (Arnoldi(rank, 4, complement="drop"), 2 * rank) for rank in (40, 80, 160)},
    "40 vectors and complement": (Arnoldi(40, 4), 80),
    "EK-FAC": (EKFAC(samples=8), 0),
    "Deflated": (Deflated(40, 4, samples=8), 80),
}

Bound = Callable[[Problem, jax.Array, jax.Array, jax.Array], Bounds]


def bounds_from(backend: Backend | None) -> Bound:
    """Bound by quadrature from the gradients, or from a backend's residuals."""

    @jax.jit
    def bounds(problem: Problem, rows: jax.Array, damping: jax.Array, width: jax.Array) -> Bounds:
        if backend is None:
            return quadratic_form_bounds(flat_products(problem), rows, damping, KEY, width, STEPS)
        solutions = solve_and_multiply(backend, backend.fit(problem, KEY), problem, rows, damping)
        return refine(solutions, problem, damping, KEY, width, STEPS)

    return bounds


def main() -> None:
    """Measure, check, print, write."""
    problem = trained()
    gradients = scored(problem, 24)
    rows = trees.ravel_batch(jax.jit(type(gradients).full)(gradients))
    state = jax.jit(Exact().fit)(problem, KEY)
    values, squares = np.asarray(state.eigenvalues), np.asarray(rows @ state.eigenvectors) ** 2
    results = []
    for name, (backend, shared) in STARTS.items():
        bounds = bounds_from(backend)
        for relative in (0.1, 0.01):
            damping = relative * values.mean()
            want = (squares / (values + damping)).sum(axis=1)
            for width in (0.05, 0.01):
                got = bounds(problem, rows, jnp.asarray(damping), jnp.asarray(width))
                row = {
                    "start": name,
                    "damping": relative,
                    "width": width,
                    "shared products": shared,
                    "products per example": int(got.steps) + (backend is not None),
                    "violations": int(np.sum((np.asarray(got.lower) > want) | (want > np.asarray(got.upper)))),
                    "widest": float(np.max((got.upper - got.lower) / want)),
                }
                results.append(row)
                print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"rows": results, "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
