"""Scores at any depth with the pretraining loss's curvature, against dense float64 formulas, for every backend."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from curvature.dense import dense
from train.small import small

from influence_ssl_jax import trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measured
from influence_ssl_jax.ihvp import (
    BACKENDS,
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Damping,
    Deflated,
    Diagonal,
    Exact,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.losses import BYOL, BarlowTwins, CosineDistance, SimCLR
from influence_ssl_jax.runs import objectives
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.train import Trained
from influence_ssl_jax.train.state import initial
from influence_ssl_jax.types import Batch

DAMPING = Damping(absolute=0.02)
LOSSES = {"simclr": SimCLR(0.5), "byol": BYOL(), "barlow_twins": BarlowTwins(off_diagonal=0.1)}
CASES = [(loss, output) for loss in LOSSES for output in ("encoder", "projector")] + [("byol", "predictor")]
# Exact where every eigenpair is kept and C is a sum of outer products of the examples' own contributions.
BACKENDS_AND_CURVATURES = {
    Exact: (Exact(), "ggn"),
    CG: (CG(tolerance=1e-14, iterations=3000), "ggn"),
    Identity: (Identity(), "empirical_fisher"),
    LoGra: (LoGra(rank=1000), "empirical_fisher"),
    Diagonal: (Diagonal(), "empirical_fisher"),
    EKFAC: (EKFAC(), "empirical_fisher"),
    KFAC: (KFAC(rank=3), "empirical_fisher"),
    Deflated: (Deflated(rank=4, block=2), "empirical_fisher"),
    Arnoldi: (Arnoldi(rank=4, block=2, probes=2), "empirical_fisher"),
    Nystrom: (Nystrom(rank=4), "empirical_fisher"),
    LiSSA: (LiSSA(depth=5, repeats=1), "empirical_fisher"),
}


def test_the_list_is_covered():
    assert set(BACKENDS_AND_CURVATURES) >= set(BACKENDS)


@functools.cache
def trained(name) -> Trained:
    """Random parameters and running statistics, the target network another one than the online network."""
    settings = small(LOSSES[name])
    shapes = jax.eval_shape(lambda: (state := initial(settings, (8, 8, 3))) and (state.params, state.frozen))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        positive = path[-1].key == "var"
        values = rng.uniform(0.3, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape) / leaf.shape[0] ** 0.5
        return jnp.asarray(values)

    params, frozen = (jax.tree_util.tree_map_with_path(draw, tree) for tree in shapes)
    return Trained(settings, (8, 8, 3), params, frozen)


def batches() -> Batch:
    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), (2, 4))
    return Batch(jnp.asarray(rng.uniform(size=(2, 4, 8, 8, 3))), keys, jnp.arange(8).reshape(2, 4))


@functools.cache
def matrix(name, curvature):
    """The problem of a score at the encoder, and its dense C."""
    problem, _ = asked(name, "encoder", curvature)
    return problem, np.asarray(dense(problem))


def asked(name, output, curvature):
    measurement = objectives.measurement(trained(name), output, GaussianNoise(0.3), CosineDistance())
    chosen = CurvatureSet("pretraining", curvature)
    return objectives.problem(trained(name), output, measurement, chosen, batches()), measurement


@functools.cache
def gradients(name, output):
    """Of the first batch: as backends read them, and each alone by `jax.grad`, flat."""
    problem, measurement = asked(name, output, "ggn")
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)

    @jax.jit
    def alone(example):
        key = jax.random.fold_in(example.key, 0)  # that of the first draw
        one = jax.tree.map(lambda leaf: leaf[None], dataclasses.replace(example, key=key))
        return jax.flatten_util.ravel_pytree(jax.grad(measurement)(problem.params, problem.frozen, one))[0]

    found = jax.jit(lambda params: measured(measurement, params, problem.frozen, batch).gradients)(problem.params)
    return found, np.stack([alone(jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(4)])


@functools.cache
def fitted(kind, name):
    backend, curvature = BACKENDS_AND_CURVATURES[kind]
    state = jax.jit(backend.fit)(matrix(name, curvature)[0], jax.random.key(0))
    return backend, state, jax.jit(backend.quadratic_form)


def block_by_block(name, approximate):
    """The matrix with each block replaced and nothing between blocks."""
    problem, c = matrix(name, "empirical_fisher")
    network, shape = problem.objective.network, problem.batches.image.shape[2:]
    places = trees.unravel(problem.params, jnp.arange(len(c), dtype=float))
    found = np.zeros_like(c)
    for block in cut.discover(network, problem.params, problem.frozen, shape):
        chosen = np.ix_(*[np.asarray(block.read(places)).astype(int).reshape(-1)] * 2)
        found[chosen] = approximate(c[chosen])
    return found


@pytest.mark.parametrize(("name", "output"), CASES)
def test_a_score_at_any_depth_is_the_dense_formula(name, output):
    drawn, g = gradients(name, output)
    read = {part: bool(np.any(trees.ravel(drawn.params[part]))) for part in drawn.params}
    assert all(read.values())
    heads = {"encoder": 0, "projector": 1, "predictor": 2}[output]
    deeper = [part for part in ("projector", "predictor")[heads:] if part in drawn.params]
    for part in deeper:
        assert not np.any(jax.vmap(lambda v, part=part: trees.ravel(trees.unravel(drawn.params, v)[part]))(g))
    c, second = (matrix(name, curvature)[1] for curvature in ("ggn", "empirical_fisher"))
    level = np.trace(second) / len(second)
    wanted = {
        Exact: c,
        CG: c,
        LoGra: block_by_block(name, lambda block: block),
        Diagonal: np.diag(np.diag(second)),
    }
    for kind, approximation in wanted.items():
        backend, state, form = fitted(kind, name)
        want = np.sum(g * np.linalg.solve(approximation + 0.02 * np.eye(len(c)), g.T).T, axis=1)
        np.testing.assert_allclose(form(state, drawn, backend.resolve(state, DAMPING)), want, rtol=1e-8)
    _, state, form = fitted(Identity, name)  # c itself is estimated from probes
    np.testing.assert_allclose(form(state, drawn, jnp.asarray(0.02)), np.sum(g**2, 1) / (state.level + 0.02), rtol=1e-9)
    assert 0.3 * level < float(state.level) < 3 * level


AGREEING = [(kind, name) for kind in (EKFAC, KFAC) for name in LOSSES]
AGREEING += [(kind, "simclr") for kind in (Deflated, Arnoldi, Nystrom, LiSSA)]


@pytest.mark.parametrize(("kind", "name"), AGREEING, ids=[f"{kind.__name__}-{name}" for kind, name in AGREEING])
def test_approximations_agree_with_their_solve(kind, name):
    """Whatever they make of C, the form of gradients with zeros in blocks not read is ⟨g, solve g⟩."""
    drawn, g = gradients(name, "encoder")
    backend, state, form = fitted(kind, name)
    damping = backend.resolve(state, Damping(0.3))
    solved = jax.jit(jax.vmap(backend.solve, in_axes=(None, 0, None)))(
        state, jax.vmap(lambda row: trees.unravel(drawn.params, row))(jnp.asarray(g)), damping
    )
    want = np.sum(g * np.asarray(trees.ravel_batch(solved)), axis=1)
    np.testing.assert_allclose(form(state, drawn, damping), want, rtol=1e-8)


@pytest.mark.parametrize("output", ["encoder", "projector"])
def test_norms_of_gradients_that_leave_parameters_unread(output):
    """The blocks of a score's norms: those of its own network, what it does not read left loose."""
    drawn, g = gradients("simclr", output)
    blocks = cut.discover(drawn.network, drawn.params, drawn.frozen, (8, 8, 3), "materialise")
    np.testing.assert_allclose(jax.jit(drawn.squared_norms, static_argnums=0)(blocks), np.sum(g**2, 1), rtol=1e-9)
    unread = [path for path in cut.leaf_paths(drawn.params) if not drawn.reads(path)]
    assert {path[0] for path in unread} == ({"projector"} if output == "encoder" else set())
