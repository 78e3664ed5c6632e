"""Every backend fitted to every small problem, once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from influence_ssl_jax import trees
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.ihvp import (
    ASTRA,
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Deflated,
    Diagonal,
    Exact,
    Form,
    Gram,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.ihvp.eigenbasis import EigenbasisBackend
from influence_ssl_jax.losses import CosineDistance, SimCLR, SquaredEuclid
from tests import problems

SMALL = {
    Exact: Exact(),
    Arnoldi: Arnoldi(rank=6, block=2, probes=4),
    Deflated: Deflated(rank=6, block=2, samples=2),
    Gram: Gram(samples=None),
    CG: CG(tolerance=1e-13, iterations=2000),
    Identity: Identity(),
    LoGra: LoGra(rank=2, samples=2),
    EKFAC: EKFAC(rank=2, samples=2),
    KFAC: KFAC(samples=2),
    Diagonal: Diagonal(samples=2),
    Nystrom: Nystrom(rank=6, complement="mean", probes=4),
    ASTRA: ASTRA(depth=300, samples=2, power_steps=10, probes=4),
    LiSSA: LiSSA(depth=60, power_steps=10, probes=4),
}
BLOCKWISE = tuple(kind for kind in SMALL if issubclass(kind, EigenbasisBackend))
"""Backends with a matrix, and a damping, for each block."""
PROBLEMS = {
    "linear": lambda: problems.problem(SquaredEuclid(), module=problems.Linear(), image=3),
    "cosine": lambda: problems.problem(CosineDistance(), module=problems.Small()),
    "coupled": lambda: problems.problem(SimCLR(0.5), module=problems.Linear(), image=3),
}
ASKED = [
    *((kind, "coupled") for kind in SMALL),
    *((kind, "cosine") for kind in (Deflated, Nystrom, Gram, Identity, *BLOCKWISE)),
    *((kind, "linear") for kind in (Exact, Arnoldi)),
]
"""Every backend on one problem; on convolutions what reads a problem layer by layer, and on repeated eigenvalues what
decomposes the whole matrix. Arnoldi's forms on convolutions, and Deflated's and Nystrom's on repeated eigenvalues, are
compared with dense formulas in their own tests."""


@functools.cache
def fitted(kind, name):
    backend = SMALL[kind]
    problem = PROBLEMS[name]()
    state = jax.jit(backend.fit)(problem, jax.random.key(0))
    measurement = problems.objective(CosineDistance(), problem.objective.network.module)
    gradients, *_ = jax.jit(measure, static_argnums=(0, 4))(
        measurement, problem.params, problem.frozen, problems.first_batch(problem), 2
    )
    return backend, problem, state, gradients


class Answers(NamedTuple):
    solved: Array
    bilinear: Array
    quadratic: Array
    form: Form


@functools.cache
def asking(kind, name):
    """All that a backend says of vectors (rows) and of the problem's gradients at a damping: compiled once.

    `traced` of the function that is returned lists the structures of λ, one number or one for each block, of every trace.
    """
    backend, problem, state, gradients = fitted(kind, name)
    traced = []

    @jax.jit
    def asked(state, gradients, rows, damping):
        traced.append(jax.tree.structure(damping))
        solve = jax.vmap(lambda v: trees.ravel(backend.solve(state, trees.unravel(problem.params, v), damping)))
        return Answers(
            solve(rows),
            backend.bilinear_form(state, gradients, gradients, damping),
            backend.quadratic_form(state, gradients, damping),
            backend.draw_gram(state, gradients, damping),
        )

    def ask(rows, damping, gradients=gradients):
        return asked(state, gradients, jnp.asarray(rows), damping)

    ask.traced = traced
    return ask


@functools.cache
def gradient_rows(name):
    """Every gradient of a problem's measurement, whole."""
    gradients = fitted(Identity, name)[-1]
    return np.asarray(trees.ravel_batch(jax.jit(type(gradients).full)(gradients)))
