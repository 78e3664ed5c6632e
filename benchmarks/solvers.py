"""At equal numbers of products with C, which iteration is nearest to the exact score: LiSSA, ASTRA or CG?

    python benchmarks/solvers.py               what is not measured yet
    python benchmarks/solvers.py --render      the table of docs/ihvp.md, from the results

A small convolutional encoder (1,112 parameters) trained by SimCLR on the bundled digits; C the Gauss–Newton matrix of the
cosine distance over 128 digits in 8 batches; gradients of 16 other digits; λ = 0.01, 0.1 and 1 × the mean eigenvalue. Per
solver, λ and number of products with C for each gradient:

    median      median of the relative error of gᵀ(C + λI)⁻¹g against the dense matrix in float64
    worst       its maximum
    one factor  its median after one common factor, which ranks and calibrated scores do not see

A step of LiSSA or ASTRA is one product. CG spends the last of its products on the residual, which its form needs
(`gᵀx + xᵀr`). "one" marks steps with the matrix of one batch, as published: 8 of them cost one product, and 4 runs, whose
mean is taken, share them. What a fit costs, once for all gradients, is not in the number: 20 products of power iterations
for LiSSA, 80 for ASTRA, 16 for the mean eigenvalue, and an EK-FAC for ASTRA and for the preconditioned CG. About ten minutes
of one core; a second run continues where a first was stopped.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

jax.config.update("jax_enable_x64", True)
sys.path[:0] = [str(Path(__file__).parents[1])]

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.ihvp import ASTRA, CG, EKFAC, Backend, Exact, LiSSA
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.provenance import versions
from influence_ssl_jax.types import PyTree
from tests.ihvp.trained import digits, scored, trained

OUT = Path(__file__).parent / "results" / "solvers.json"
PAGE = Path(__file__).parents[1] / "docs" / "ihvp.md"
KEY = jax.random.key(1)
BATCHES, REPEATS, IMAGES = 8, 4, 16
PRODUCTS = (5, 10, 20, 50, 100, 200, 500, 1000)
FEWER = (10, 50, 200, 1000)
"""Numbers of products for steps with one batch, each of which is a program of its own."""
RELATIVE = (0.01, 0.1, 1.0)
SOLVERS: dict[str, Callable[[Any], Backend]] = {
    "LiSSA": lambda products: LiSSA(depth=products),
    "ASTRA": lambda products: ASTRA(depth=products, samples=8),
    "CG": lambda products: CG(tolerance=0.0, iterations=products - 1),
    "CG with EK-FAC": lambda products: CG(0.0, products - 1, preconditioner=EKFAC(samples=8)),
}
STOCHASTIC: dict[str, Callable[[int], Backend]] = {
    "LiSSA, one": lambda products: LiSSA(products * BATCHES // REPEATS, "one", repeats=REPEATS),
    "ASTRA, one": lambda products: ASTRA(products * BATCHES // REPEATS, "one", samples=8, repeats=REPEATS),
}


def main() -> None:
    """Measure what is missing, write after every row, print."""
    rows = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    problem = dataclasses.replace(trained(), batches=digits(128, BATCHES, 1))
    gradients = scored(problem, IMAGES)
    vectors = trees.ravel_batch(jax.jit(type(gradients).full)(gradients))
    dense = jax.jit(Exact().fit)(problem, KEY)
    values, squares = np.asarray(dense.eigenvalues), np.asarray(vectors @ dense.eigenvectors) ** 2
    for name, make in (SOLVERS | STOCHASTIC).items():
        run = forms(make, problem, gradients, one_program=name in SOLVERS)
        done = {(row["damping"], row["products"]) for row in rows if row["solver"] == name}
        for count in PRODUCTS if name in SOLVERS else FEWER:
            for share in RELATIVE:
                if (share, count) in done:
                    continue
                damping = share * values.mean()
                ratio = np.asarray(run(damping, count)) / (squares / (values + damping)).sum(axis=1)
                row = {
                    "solver": name,
                    "damping": share,
                    "products": count,
                    "median": float(np.median(np.abs(ratio - 1))),
                    "worst": float(np.max(np.abs(ratio - 1))),
                    "one factor": float(np.median(np.abs(ratio / np.median(ratio) - 1))),
                }
                rows.append(row)
                print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                OUT.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n")


def forms(
    make: Callable[[Any], Backend], problem: Problem, gradients: ExampleGradients, one_program: bool
) -> Callable[[float, int], Array]:
    """Return a function of λ and number of products that computes the forms.

    Args:
        make: Makes the solver from the number of products.
        problem: C.
        gradients: The gradients g.
        one_program: Whether the number is an argument of the compiled program; otherwise each number has its own.
    """

    @functools.cache
    def fitted(count: int) -> PyTree:
        return jax.jit(make(count).fit)(problem, KEY)

    @functools.cache
    def compiled(count: int | None) -> Callable[..., Array]:
        def run(state: PyTree, damping: Array, given: Array) -> Array:
            return make(given if count is None else count).quadratic_form(state, gradients, damping)

        return jax.jit(run)

    def run(damping: float, count: int) -> Array:
        state = fitted(PRODUCTS[0] if one_program else count)
        return compiled(None if one_program else count)(state, jnp.asarray(damping), jnp.asarray(count))

    return run


def table(rows: list[dict[str, Any]]) -> str:
    """Return median errors, and in brackets those after one factor, as a Markdown table."""
    by_count = {(row["solver"], row["damping"], row["products"]): row for row in rows}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        return "diverged" if row["median"] > 10 else f"{percent(row['median'])} ({percent(row['one factor'])})"

    lines = [["λ / mean", "solver", *map(str, PRODUCTS)], ["---"] * (2 + len(PRODUCTS))]
    lines += [
        [f"{share:g}", name, *(cell(by_count.get((name, share, count))) for count in PRODUCTS)]
        for share in RELATIVE
        for name in (*SOLVERS, *STOCHASTIC)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(error: float) -> str:
    """Return an error in per cent, to two digits, or as a power of ten if it is below a ten-thousandth."""
    return f"{error:.0e}" if error < 1e-4 else f"{100 * error:.2g} %" if error < 0.995 else f"{100 * error:.0f} %"


def render() -> None:
    """Write the table into the page, between its marks."""
    begin, end = "<!-- solvers: begin -->\n", "\n<!-- solvers: end -->"
    before, rest = PAGE.read_text().split(begin)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n{table(json.loads(OUT.read_text())['rows'])}\n{end}{after}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--render"]:
        render()
    else:
        main()
