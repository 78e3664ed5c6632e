"""Every backend fitted to every small problem, once."""

import functools

import jax
import problems

from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp import (
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Deflated,
    Diagonal,
    Exact,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid

SMALL = {
    Exact: Exact(),
    Arnoldi: Arnoldi(rank=6, block=2, probes=4),
    Deflated: Deflated(rank=6, block=2, samples=2),
    CG: CG(tolerance=1e-13, iterations=2000),
    Identity: Identity(),
    LoGra: LoGra(rank=2, samples=2),
    EKFAC: EKFAC(rank=2, samples=2),
    KFAC: KFAC(samples=2),
    Diagonal: Diagonal(samples=2),
    Nystrom: Nystrom(rank=6, complement="mean", probes=4),
    LiSSA: LiSSA(depth=60, power_steps=10, probes=4),
}
PROBLEMS = {
    "linear": lambda: problems.problem(SquaredEuclid(), module=problems.Linear(), image=3),
    "cosine": lambda: problems.problem(CosineDistance(), module=problems.Small()),
    "coupled": lambda: problems.problem(SimCLR(0.5), module=problems.Small()),
}


@functools.cache
def fitted(kind, name):
    backend = SMALL[kind]
    problem = PROBLEMS[name]()
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    measurement = problems.objective(CosineDistance(), problem.objective.network.module)
    gradients, *_ = jax.jit(measured, static_argnums=(0, 4))(
        measurement, problem.params, problem.frozen, problems.first_batch(problem), 2
    )
    return backend, problem, state, gradients


@functools.cache
def jitted(backend, method):
    return jax.jit(getattr(backend, method))
