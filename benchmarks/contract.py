"""How near is every backend to the dense matrix, on every small problem? One table, backend × problem.

    python benchmarks/contract.py              every backend
    python benchmarks/contract.py Gram ASTRA   these alone
    python benchmarks/contract.py --render     the table of docs/ihvp.md, from the results

A convolutional network with BatchNorm (four channels, 240 parameters) with every loss and every curvature, and a linear
map whose matrix has every eigenvalue three times over; gradients of the cosine distance in two draws; λ a tenth of the
mean eigenvalue, or twice the most negative one. Backends that have an exact regime are in it. About 45 minutes of one
core, nearly all of it compiling; a second run continues where a first was stopped, and measures again what is of another
version. Per backend and problem:

    error         worst relative error of gᵀ(C + λI)⁻¹g against dense float64
    median        its median after one common factor, which ranks and calibrated scores do not see
    consistency   worst difference between a form and ⟨g, solve g⟩, relative to the largest form
    violations    certified intervals (`ihvp.certificate`) that do not hold the dense value

Expected: error below 1e-8 in the exact regime, consistency below 1e-9 and no violation everywhere.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiles three times as fast, computes the same
sys.path[:0] = [str(Path(__file__).parents[1])]

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.evaluation.certificate import bound_by_residual, solve_and_multiply
from influence_ssl_jax.ihvp import (
    ASTRA,
    BACKENDS,
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Backend,
    Deflated,
    Diagonal,
    Exact,
    Gram,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid
from influence_ssl_jax.problem import Problem
from influence_ssl_jax.provenance import versions
from tests import problems
from tests.curvature.dense import dense

OUT = Path(__file__).parent / "results" / "contract.json"
PAGE = Path(__file__).parents[1] / "docs" / "ihvp.md"
VERSION = versions()["influence-ssl-jax"]
EXACT_REGIME = (Exact, Gram, CG, Arnoldi, Deflated, Nystrom)


def backends(size: int) -> dict[type[Backend], Backend]:
    """Return every backend of the list, for a matrix of this size."""
    chosen = {
        Exact: Exact(),
        Gram: Gram(samples=None),
        CG: CG(tolerance=1e-13, iterations=2000),
        Arnoldi: Arnoldi(rank=size, block=4, expansion=1.0),
        Deflated: Deflated(rank=size, block=4, expansion=1.0),
        Nystrom: Nystrom(rank=size),
        ASTRA: ASTRA(depth=2000, samples=8),
        LiSSA: LiSSA(depth=2000),
        EKFAC: EKFAC(samples=8),
        KFAC: KFAC(samples=8),
        LoGra: LoGra(rank=8, samples=8),
        Diagonal: Diagonal(samples=8),
        Identity: Identity(),
    }
    if set(chosen) != set(BACKENDS):
        raise SystemExit(f"The table lacks {set(BACKENDS) - set(chosen)}.")
    return chosen


def named_problems() -> Iterator[tuple[str, Problem]]:
    """Return every loss with the GGN, and every other curvature.

    Other curvatures are those of one separable and one batch-coupled loss.
    """
    yield "linear, repeated spectrum", problems.problem(SquaredEuclid(), module=problems.Linear(), image=3)
    for loss in problems.LOSSES:
        yield f"{type(loss).__name__}, ggn", problems.problem(loss)
    for curvature in ("fisher", "empirical_fisher", "hessian"):
        for loss in (CosineDistance(), SimCLR(temperature=0.5)):
            yield f"{type(loss).__name__}, {curvature}", problems.problem(loss, curvature)


def judge(backend: Backend, problem: Problem) -> dict[str, Any]:
    """Return the row of one backend on one problem."""
    matrix = np.asarray(dense(problem))
    values, vectors = np.linalg.eigh(matrix)
    damping = max(0.1 * float(values.mean()), -2 * float(values[0]))
    measurement = problems.objective(CosineDistance(), problem.objective.network.module)
    bounded = problem.curvature != "hessian"

    @jax.jit
    def run(problem: Problem, damping: jax.Array) -> tuple[jax.Array, ...]:
        state = backend.fit(problem, jax.random.key(0))
        batch = problems.first_batch(problem)
        gradients = measure(measurement, problem.params, problem.frozen, batch, 2).gradients
        rows, forms = trees.ravel_batch(gradients.full()), backend.quadratic_form(state, gradients, damping)
        if not bounded:
            solve = jax.vmap(lambda v: trees.ravel(backend.solve(state, trees.unravel(problem.params, v), damping)))
            return rows, forms, jnp.sum(rows * solve(rows), axis=1)
        certificates = bound_by_residual(solve_and_multiply(backend, state, problem, rows, damping), damping)
        return rows, forms, certificates.value, *certificates.interval

    try:
        rows, forms, values_by_solve, *interval = map(np.asarray, run(problem, jnp.asarray(damping)))
    except CurvatureError:
        return {}
    want = ((rows @ vectors) ** 2 / (values + damping)).sum(axis=1)
    ratio = forms / want
    row = {
        "exact regime": isinstance(backend, EXACT_REGIME),
        "error": float(np.max(np.abs(ratio - 1))),
        "median": float(np.median(np.abs(ratio / np.median(ratio) - 1))),
        "consistency": float(np.max(np.abs(forms - values_by_solve)) / np.max(np.abs(forms))),
    }
    if interval:
        row["violations"] = int(np.sum((interval[0] > want) | (want > interval[1])))
    return row


def table(by_problem: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the results as a Markdown table: `–` where a backend refuses, † behind figures of another version."""
    names = [kind.__name__ for kind in backends(1)]

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "not measured"
        if "error" not in row:
            return "–"
        error = row["error"]
        text = f"{error:.0e}" if error < 1e-4 else f"{100 * error:.2g} %" if error < 0.995 else f"{100 * error:.0f} %"
        return text if row["version"] == VERSION else f"{text} †"

    lines = [["problem", *(f"`{name}`" for name in names)], ["---"] * (1 + len(names))]
    lines += [[problem, *(cell(rows.get(name)) for name in names)] for problem, rows in by_problem.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render() -> None:
    """Write the table into the page, between its marks."""
    begin, end = "<!-- contract: begin -->\n", "\n<!-- contract: end -->"
    before, rest = PAGE.read_text().split(begin)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n{table(json.loads(OUT.read_text())['rows'])}\n{end}{after}")


def fill(chosen: list[str]) -> None:
    """Measure what is not measured yet of the chosen backends, write after every row, print."""
    by_problem = json.loads(OUT.read_text())["rows"] if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    for name, problem in named_problems():
        rows = by_problem.setdefault(name, {})
        for kind, backend in backends(trees.size(problem.params)).items():
            if kind.__name__ in chosen and rows.get(kind.__name__, {}).get("version") != VERSION:
                rows[kind.__name__] = judge(backend, problem) | {"version": VERSION}
                OUT.write_text(json.dumps({"rows": by_problem, "versions": versions()}, indent=1) + "\n")
            if kind.__name__ not in rows:
                continue
            columns = " ".join(f"{key} {value:.2g}" for key, value in rows[kind.__name__].items() if key != "version")
            print(f"{name:30} {kind.__name__:9} {columns or 'refused'}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--render"]:
        render()
    else:
        fill(sys.argv[1:] or [kind.__name__ for kind in BACKENDS])
