"""Scores at any depth with the pretraining loss's curvature, against dense float64 formulas, for every backend."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import measure
from influence_ssl_jax.encoder import Encoder
from influence_ssl_jax.ihvp import (
    ASTRA,
    BACKENDS,
    CG,
    EKFAC,
    KFAC,
    Arnoldi,
    Damping,
    Deflated,
    Diagonal,
    Exact,
    Gram,
    Identity,
    LiSSA,
    LoGra,
    Nystrom,
)
from influence_ssl_jax.losses import BYOL, BarlowTwins, CosineDistance, SimCLR, SimSiam, VICReg
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.runs.prepare import form_measurement, form_problem
from influence_ssl_jax.runs.settings import CurvatureSet
from influence_ssl_jax.train import Trained
from influence_ssl_jax.train.settings import tiny
from influence_ssl_jax.train.state import initial
from influence_ssl_jax.types import Batch
from tests.curvature.dense import dense
from tests.train.small import Small

SHAPE = 2, 2, 3
DAMPING = Damping(absolute=0.02)
LOSSES = {
    "simclr": SimCLR(0.5),
    "byol": BYOL(),
    "barlow_twins": BarlowTwins(off_diagonal=0.1),
    "simsiam": SimSiam(),
    "vicreg": VICReg(1.0, 1.0, 0.5),
}
CASES = [(loss, output) for loss in LOSSES for output in ("encoder", "projector")]
CASES += [(loss, "predictor") for loss in LOSSES if LOSSES[loss].compares_with_target]
# Exact where every eigenpair is kept and C is a sum of outer products of the examples' own contributions.
BACKENDS_AND_CURVATURES = {
    Exact: (Exact(), "ggn"),
    Gram: (Gram(samples=None), "ggn"),
    CG: (CG(tolerance=1e-14, iterations=3000), "ggn"),
    Identity: (Identity(), "empirical_fisher"),
    LoGra: (LoGra(rank=1000), "empirical_fisher"),
    Diagonal: (Diagonal(), "empirical_fisher"),
    EKFAC: (EKFAC(), "empirical_fisher"),
    KFAC: (KFAC(rank=3), "empirical_fisher"),
    Deflated: (Deflated(rank=4, block=2), "empirical_fisher"),
    Arnoldi: (Arnoldi(rank=4, block=2, probes=2), "empirical_fisher"),
    Nystrom: (Nystrom(rank=4), "empirical_fisher"),
    ASTRA: (ASTRA(depth=5, power_steps=5, probes=2), "empirical_fisher"),
    LiSSA: (LiSSA(depth=5, repeats=1), "empirical_fisher"),
}


# Forms of known matrices. What differs between the losses are the products (Exact) and contributions (LoGra) of C; what
# a backend makes of either is the same for all, and is asked of one loss.
EVERY_LOSS = (Exact, LoGra)
BY_FORMULA = (*EVERY_LOSS, CG, Diagonal, Identity)
BY_SOLVE = [kind for kind in BACKENDS if kind not in (*BY_FORMULA, Gram, KFAC, ASTRA)]
"""KFAC and ASTRA have the forms of EKFAC and LiSSA, from the classes of both; Gram is asked in its own tests."""


def test_the_list_is_covered():
    assert set(BACKENDS_AND_CURVATURES) >= set(BACKENDS)


class OneLayer(nn.Module):
    """`W x + b` on flattened pixels: convolutions under a loss are in `tests/curvature`."""

    @nn.compact
    def __call__(self, images, train):
        del train
        return nn.Dense(3, name="dense")(images.reshape(len(images), -1))


@dataclasses.dataclass(frozen=True)
class Headed(Small):
    """One linear layer, and the heads of a loss with their BatchNorm."""

    def module(self, dtype=None):
        return dataclasses.replace(super().module(dtype), backbone=OneLayer())


@functools.cache
def trained(name) -> Encoder:
    """Random parameters and running statistics, the target network another one than the online network."""
    settings = Headed(**{**vars(tiny(LOSSES[name])), "batch_size": 16})
    shapes = jax.eval_shape(lambda: (state := initial(settings, SHAPE)) and (state.params, state.frozen))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        positive = path[-1].key == "var"
        values = rng.uniform(0.3, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape) / leaf.shape[0] ** 0.5
        return jnp.asarray(values)

    params, frozen = (jax.tree_util.tree_map_with_path(draw, tree) for tree in shapes)
    return Trained(settings, SHAPE, params, frozen).encoder()


def batches() -> Batch:
    rng = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), (2, 4))
    return Batch(jnp.asarray(rng.uniform(size=(2, 4, *SHAPE))), keys, jnp.arange(8).reshape(2, 4))


@functools.cache
def matrix(name, curvature):
    """The problem of a score at the encoder, and its dense C."""
    problem, _ = asked(name, "encoder", curvature)
    return problem, np.asarray(dense(problem))


def asked(name, output, curvature):
    measurement = form_measurement(trained(name), output, GaussianNoise(0.3), CosineDistance())
    chosen = CurvatureSet("pretraining", curvature)
    return form_problem(trained(name), output, measurement, chosen, batches()), measurement


@functools.cache
def gradients(name, output):
    """Of the first batch: as backends read them, and each alone by `jax.grad`, flat."""
    problem, measurement = asked(name, output, "ggn")
    batch = jax.tree.map(lambda leaf: leaf[0], problem.batches)

    @jax.jit
    def alone(example):
        own = randomness.branch(example.key, Stream.PERTURBATIONS)
        key = jax.random.fold_in(own, 0)  # that of the first draw
        one = jax.tree.map(lambda leaf: leaf[None], dataclasses.replace(example, key=key))
        return jax.flatten_util.ravel_pytree(jax.grad(measurement)(problem.params, problem.frozen, one))[0]

    measured = jax.jit(lambda params: measure(measurement, params, problem.frozen, batch).gradients)(problem.params)
    return measured, np.stack([alone(jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(4)])


@functools.cache
def fitted(kind, name):
    backend, curvature = BACKENDS_AND_CURVATURES[kind]
    return backend, jax.jit(backend.fit)(matrix(name, curvature)[0], jax.random.key(0))


@functools.cache
def forms(name, output):
    """Every backend that a formula is known for, with its state, and its forms of the gradients: one program."""
    drawn, _ = gradients(name, output)
    fits = {kind: fitted(kind, name) for kind in (BY_FORMULA if name == "simclr" else EVERY_LOSS)}
    dampings = {kind: backend.resolve(state, DAMPING) for kind, (backend, state) in fits.items()}

    @jax.jit
    def ask(states, drawn, dampings):
        return {
            kind.__name__: fits[kind][0].quadratic_form(states[i], drawn, dampings[i]) for i, kind in enumerate(fits)
        }

    computed = ask([state for _, state in fits.values()], drawn, list(dampings.values()))
    return {kind: computed[kind.__name__] for kind in fits}


def block_by_block(name, approximate):
    """The matrix with each block replaced and nothing between blocks."""
    problem, c = matrix(name, "empirical_fisher")
    network, shape = problem.objective.network, problem.batches.image.shape[2:]
    places = trees.unravel(problem.params, jnp.arange(len(c), dtype=float))
    inverse = np.zeros_like(c)
    for block in cut.discover(network, problem.params, problem.frozen, shape):
        chosen = np.ix_(*[np.asarray(block.read(places)).astype(int).reshape(-1)] * 2)
        inverse[chosen] = approximate(c[chosen])
    return inverse


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
        Gram: c,
        CG: c,
        LoGra: block_by_block(name, lambda block: block),
        Diagonal: np.diag(np.diag(second)),
    }
    by_backend = forms(name, output)
    if Identity in by_backend:  # its level is estimated from probes
        estimated = float(fitted(Identity, name)[1].level)
        assert 0.3 * level < estimated < 3 * level
        wanted[Identity] = estimated * np.eye(len(c))
    for kind, form in by_backend.items():
        want = np.sum(g * np.linalg.solve(wanted[kind] + 0.02 * np.eye(len(c)), g.T).T, axis=1)
        np.testing.assert_allclose(form, want, rtol=1e-8)


@pytest.mark.parametrize("kind", BY_SOLVE, ids=lambda kind: kind.__name__)
def test_approximations_agree_with_their_solve(kind):
    """Whatever they make of C, the form of gradients with zeros in blocks not read is ⟨g, solve g⟩."""
    drawn, g = gradients("simclr", "encoder")
    backend, state = fitted(kind, "simclr")

    @jax.jit
    def both(state, drawn, rows, damping):
        solve = jax.vmap(lambda row: trees.ravel(backend.solve(state, trees.unravel(drawn.params, row), damping)))
        return backend.quadratic_form(state, drawn, damping), solve(rows)

    form, solved = both(state, drawn, jnp.asarray(g), backend.resolve(state, Damping(0.3)))
    np.testing.assert_allclose(form, np.sum(g * np.asarray(solved), axis=1), rtol=1e-8)


@pytest.mark.parametrize("output", ["encoder", "projector"])
def test_norms_of_gradients_that_leave_parameters_unread(output):
    """The blocks of a score's norms: those of its own network, what it does not read left loose."""
    drawn, g = gradients("simclr", output)
    blocks = cut.discover(drawn.network, drawn.params, drawn.frozen, SHAPE, "materialise")
    np.testing.assert_allclose(jax.jit(drawn.squared_norms, static_argnums=0)(blocks), np.sum(g**2, 1), rtol=1e-9)
    unread = [path for leaf, path in enumerate(cut.leaf_paths(drawn.params)) if leaf not in drawn.program.read]
    assert {path[0] for path in unread} == ({"projector"} if output == "encoder" else set())
