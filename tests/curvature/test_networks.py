"""Every kind of network: what sites make of its parameters equals dense automatic differentiation, or is refused."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.gradients import ExampleGradients, compare_gradients
from influence_ssl_jax.curvature.moments import sides
from influence_ssl_jax.curvature.sites import leaf_paths, program_of
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.ihvp import Identity
from influence_ssl_jax.ihvp import eigenbasis as basis
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.scoring.fitting import fit_checked
from tests import problems
from tests.curvature.networks import CASES, SHAPE

VIEWS, DRAWS, BATCH = 2, 2, 2


@functools.partial(jax.jit, static_argnums=(3, 4))
def everything(params, frozen, arrays, network, blocks):
    """By sites: gradients, norms, projections, rows and factors; the gradients of `vmap`; parameters put together again."""
    images, cotangents, random = arrays
    gradients = ExampleGradients(params, frozen, images, cotangents, network, DRAWS)
    whole = gradients.full()
    return (
        {block.name: jax.vmap(block.read)(whole) for block in blocks},
        {block.name: block.materialise(gradients) for block in blocks},
        gradients.gram(blocks),
        gradients.squared_norms(blocks),
        basis.project(gradients, blocks, random),
        {
            block.name: block.rows(gradients)
            for block in blocks
            if isinstance(block, cut.MatrixBlock) and block.calls(gradients) is not None
        },
        sides(blocks, gradients),
        trees.ravel_batch(whole),
        cut.assemble(params, blocks, {block.name: block.read(params) for block in blocks}),
    )


def random_bases(blocks, rng):
    """One vector each side of a matrix, as LoGra of rank 1 has: narrow enough that positions are projected."""
    bases = {}
    for block in blocks:
        if isinstance(block, cut.MatrixBlock):
            bases[block.name] = tuple(
                jnp.asarray(rng.normal(size=(block.groups, s, 1))) for s in (block.inputs, block.outputs)
            )
        else:
            bases[block.name] = (jnp.asarray(rng.normal(size=(block.size, 1))),)
    return bases


@pytest.fixture(autouse=True)
def ranks_as_users_have_them():
    """Networks of others broadcast as NumPy does."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_sites_are_exact_or_parameters_are_named(name):
    case = CASES[name]()
    program = program_of(case.network, case.params, case.frozen, SHAPE)
    paths = leaf_paths(case.params)
    assert {"/".join(paths[leaf]) for leaf in program.loose} == case.loose
    if case.loose:
        with pytest.raises(StructureError, match=f"{min(case.loose)}.*materialise"):
            cut.discover(case.network, case.params, case.frozen, SHAPE)
    blocks = cut.discover(case.network, case.params, case.frozen, SHAPE, "materialise")
    assert sum(block.size for block in blocks) == trees.size(case.params)

    rng = np.random.default_rng(0)
    n = DRAWS * BATCH
    images = jnp.asarray(rng.uniform(size=(VIEWS, n, *SHAPE)))
    like = jax.eval_shape(case.network, case.params, case.frozen, images[0])
    cotangents = jnp.asarray(rng.normal(size=(VIEWS, n, like.shape[1])), like.dtype)
    random = random_bases(blocks, rng)
    computed = everything(case.params, case.frozen, (images, cotangents, random), case.network, blocks)
    whole, formed, gram, norms, projected, rows, factors, flat, again = jax.device_get(computed)
    scale = np.abs(flat).max()
    assert scale > 0

    def close(got, want, factor=1.0):
        np.testing.assert_allclose(got, want, rtol=0, atol=case.tolerance * factor)

    drawn = flat.reshape(DRAWS, BATCH, -1)
    square = float((flat**2).sum(1).max())
    close(gram, np.einsum("kbp,lbp->bkl", drawn, drawn), square)
    close(norms, (flat**2).sum(1), square)
    for block in blocks:
        want, own = np.asarray(whole[block.name]), random[block.name]
        close(formed[block.name], want, scale)
        if len(own) == 1:
            close(projected[block.name], want @ own[0], scale * 10)
            continue
        close(projected[block.name], np.einsum("gik,ngio,gol->ngkl", own[0], want, own[1]).reshape(n, -1), scale * 10)
        if block.name in rows:
            a, s = map(np.asarray, rows[block.name])
            close(np.einsum("ntgi,ntgo->ngio", a, s), want, scale)
            inner = np.einsum("ntgi,ntgj->gij", a, a) / (a.shape[0] * a.shape[1])
            outer = np.einsum("ntgo,ntgp->gop", s, s)
        else:
            inner = np.einsum("ngio,ngjo->gij", want, want) / np.sum(want**2, axis=(0, 2, 3))[:, None, None]
            outer = np.einsum("ngio,ngip->gop", want, want)
        for got, moment in zip(factors[block.name], (inner, outer), strict=True):
            close(got, moment, np.abs(moment).max())
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(case.params))


def normal(**shapes):
    rng = np.random.default_rng(1)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def linear(params, frozen, images):
    return images.mean((1, 2)) @ params["kernel"]


def sine(params, frozen, images):
    return images.mean((1, 2)) @ jnp.sin(params["kernel"])


def test_a_loop_without_a_backward_pass_is_refused_by_name():
    def network(params, frozen, images):
        return jax.lax.while_loop(
            lambda x: jnp.all(x < 9), lambda x: x + jnp.abs(x * params["gain"]) + 1, images[:, 0, 0]
        )

    params = normal(gain=(2,))
    with pytest.raises(StructureError, match="gain are used inside a `while` loop"):
        cut.discover(network, params, {}, SHAPE, "materialise")


def test_frozen_that_holds_parameters_is_refused():
    params = normal(kernel=(2, 3))
    with pytest.raises(StructureError, match="frozen holds an entry 'params'"):
        cut.discover(linear, params, {"params": params}, SHAPE)


def test_an_unread_parameter_is_named():
    params = normal(kernel=(2, 3), old=(2,))
    with pytest.raises(StructureError, match=r"does not read the parameters old.*materialise"):
        cut.discover(linear, params, {}, SHAPE)


def test_the_check_names_parameters_whose_gradient_depends_on_the_batch():
    def network(params, frozen, images):
        z = images.mean((1, 2)) @ params["kernel"] + params["bias"]
        return jnp.tanh(z - z.mean(0))

    params = normal(kernel=(2, 3), bias=(3,))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *SHAPE)))
    blocks = cut.discover(network, params, {}, SHAPE)
    with pytest.raises(StructureError, match=r"kernel.*disagree with automatic differentiation"):
        compare_gradients(network, params, {}, images, jnp.ones((2, 3)), blocks)


def test_the_check_passes_a_network_that_is_understood():
    case = CASES["layer_norm"]()
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *SHAPE)))
    blocks = cut.discover(case.network, case.params, case.frozen, SHAPE)
    compare_gradients(case.network, case.params, case.frozen, images, jnp.ones((2, 4)), blocks)


def test_gradients_formed_whole_are_of_few_examples_at_a_time(monkeypatch):
    """A loose kernel: norms, projections and second moments do not change, and no array holds every example's."""
    params = normal(kernel=(2, 1100))
    rng = np.random.default_rng(0)
    images, cotangents = rng.uniform(size=(1, 6, *SHAPE)), rng.normal(size=(1, 6, 1100))
    gradients = ExampleGradients(params, {}, jnp.asarray(images), jnp.asarray(cotangents), sine, 2)
    blocks = cut.discover(sine, params, {}, SHAPE, "materialise")
    random = random_bases(blocks, rng)

    def compute():
        norms = basis.squared_norms(gradients, blocks)
        return gradients.gram(blocks), basis.project(gradients, blocks, random), norms, sides(blocks, gradients)

    whole = jax.jit(compute)()
    monkeypatch.setattr(cut, "ENTRIES", 5000)  # one example's two draws
    parts = jax.jit(lambda: compute())()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), parts, whole)
    rows = trees.ravel_batch(gradients.full())
    np.testing.assert_allclose(jnp.einsum("bkk->kb", parts[0]).reshape(-1), (rows**2).sum(1), rtol=1e-10)
    sizes = [
        math.prod(out.aval.shape)
        for equation in jax.make_jaxpr(lambda: gradients.gram(blocks))().eqns
        for out in equation.outvars
    ]
    assert max(sizes) < 6 * 2200


class Coupled(nn.Module):
    """An embedding that depends on the batch, as a norm in training mode makes it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        z = problems.Linear(name="net")(x, train)
        return jnp.tanh(z - z.mean(0, keepdims=True))


def test_a_fit_stops_where_a_gradient_fails_the_check():
    problem = problems.problem(CosineDistance(), module=Coupled(), image=2)
    with pytest.raises(StructureError, match=r"net/linear/kernel.*disagree with automatic differentiation"):
        fit_checked(problem, Identity(), 0)
