"""Captured, projected and ghost-normed gradients equal those of `vmap(grad)`, layer by layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.curvature import blocks as cut
from influence_ssl_jax.curvature.contributions import contributions, draw_example_gradients, measure
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.errors import StructureError
from influence_ssl_jax.losses import CosineDistance, SimCLR
from influence_ssl_jax.randomness import Stream
from tests import problems

DRAWS = 3


class Geometry(nn.Module):
    """One convolution of awkward geometry, then a mean."""

    conv: nn.Conv

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        return jnp.tanh(self.conv(x)).mean((1, 2))


GEOMETRIES = {  # `test_networks.py` has the others, by narrow bases
    "groups_without_bias": nn.Conv(6, (3, 3), feature_group_count=2, use_bias=False, strides=(2, 2)),
    "input_dilation": nn.Conv(3, (2, 2), input_dilation=(2, 2), padding=((0, 1), (1, 0))),
}


full = jax.jit(ExampleGradients.full)
gram = jax.jit(ExampleGradients.gram, static_argnums=1)


def gradients_of(module, draws=DRAWS):
    problem = problems.problem(CosineDistance(), module=module)
    batch = problems.first_batch(problem)
    gradients, values, _, _ = jax.jit(measure, static_argnums=(0, 4))(
        problem.objective, problem.params, problem.frozen, batch, draws
    )
    blocks = cut.discover(problem.objective.network, problem.params, problem.frozen, batch.image.shape[1:])
    return problem, batch, gradients, values, blocks


def test_a_measured_gradient_is_that_of_the_examples_own_value():
    problem, batch, gradients, values, _ = gradients_of(problems.ConvNet())
    rows = np.asarray(jax.jit(lambda gradients: trees.ravel_batch(gradients.full()))(gradients))

    @jax.jit
    def of_one(i, draw):
        alone = jax.tree.map(lambda leaf: leaf[i][None], batch)
        key = jax.random.fold_in(randomness.branch(batch.key[i], Stream.PERTURBATIONS), draw)
        alone = type(batch)(alone.image, key[None], alone.index, alone.label)
        value, gradient = jax.value_and_grad(problem.objective)(problem.params, problem.frozen, alone)
        return value, trees.ravel(gradient)

    for draw in range(DRAWS):
        for i in range(batch.index.size):
            value, gradient = of_one(i, draw)
            np.testing.assert_allclose(values[draw, i], value, rtol=1e-11)
            np.testing.assert_allclose(rows[draw * batch.index.size + i], gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("module", [problems.ConvNet(), *map(Geometry, GEOMETRIES.values())], ids=["net", *GEOMETRIES])
def test_blocks_materialise_project_and_norm_the_gradients_of_vmap(module):
    problem, _, gradients, _, blocks = gradients_of(module)
    rng = np.random.default_rng(0)
    bases = {  # narrow bases project every position, bases as wide as the sides the gradient formed
        block.name: [
            [rng.normal(size=(block.groups, size, rank)) for size, rank in zip(sizes, ranks, strict=True)]
            for sizes in [(block.inputs, block.outputs)]
            for ranks in ((1, 1), sizes)
        ]
        for block in blocks
        if isinstance(block, cut.MatrixBlock)
    }

    @jax.jit
    def compute(gradients, bases):
        whole = gradients.full()
        return (
            {block.name: jax.vmap(block.read)(whole) for block in blocks},
            {block.name: block.materialise(gradients) for block in blocks},
            {
                block.name: [block.project(gradients, *pair) for pair in bases[block.name]]
                for block in blocks
                if block.name in bases
            },
            trees.ravel_batch(whole),
            gradients.gram(blocks),
            cut.assemble(gradients.params, blocks, {block.name: block.read(gradients.params) for block in blocks}),
        )

    whole, materialised, projected, rows, gram, again = jax.device_get(compute(gradients, bases))
    for name, want in whole.items():
        np.testing.assert_allclose(materialised[name], want, rtol=1e-9, atol=1e-13)
        for (left, right), got in zip(bases.get(name, []), projected.get(name, []), strict=True):
            want_projected = np.einsum("gik,ngio,gol->ngkl", left, want, right)
            np.testing.assert_allclose(got, want_projected, rtol=1e-9, atol=1e-12)
    rows = rows.reshape(DRAWS, gradients.cotangents.shape[1] // DRAWS, -1)
    np.testing.assert_allclose(gram, np.einsum("kbp,lbp->bkl", rows, rows), rtol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(problem.params))


def test_both_ways_to_a_gram_agree():
    """Ghost norms (few positions, many weights) and materialised gradients (the reverse)."""
    few = nn.Conv(40, (3, 3), strides=(6, 6), use_bias=False)
    many = nn.Conv(2, (1, 1), use_bias=False)
    for conv in (few, many):
        _, _, gradients, _, blocks = gradients_of(Geometry(conv))
        rows = np.asarray(trees.ravel_batch(full(gradients))).reshape(DRAWS, -1, sum(block.size for block in blocks))
        np.testing.assert_allclose(gram(gradients, blocks), np.einsum("kbp,lbp->bkl", rows, rows), rtol=1e-10)


def test_directional_and_summed_gradients():
    problem, _, gradients, _, _ = gradients_of(problems.ConvNet())
    basis = np.random.default_rng(0).normal(size=(4, trees.size(problem.params)))

    @jax.jit
    def compute(gradients, basis):
        directions = jax.vmap(lambda row: trees.unravel(problem.params, row))(basis)
        return gradients.along(directions), trees.ravel(gradients.sum()), trees.ravel_batch(gradients.full())

    along, summed, rows = jax.device_get(compute(gradients, basis))
    np.testing.assert_allclose(along, rows @ basis.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(summed, rows.sum(0), rtol=1e-9, atol=1e-12)


def test_contributions_sum_to_the_gradient_of_a_coupled_batch():
    problem = problems.problem(SimCLR())
    batch = problems.first_batch(problem)
    want = jax.jit(jax.grad(problem.objective))(problem.params, problem.frozen, batch)
    got = trees.scale(
        batch.index.size**-0.5, jax.jit(lambda problem, batch: contributions(problem, batch).sum())(problem, batch)
    )
    np.testing.assert_allclose(trees.ravel(got), trees.ravel(want), rtol=1e-9, atol=1e-13)


def test_sampled_gradients_refuse_a_coupled_loss():
    problem = problems.problem(SimCLR())
    with pytest.raises(TypeError, match="couples the examples"):
        draw_example_gradients(problem, problems.first_batch(problem), 1)


class WithTemperature(nn.Module):
    """A parameter that the network is not linear in."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        z = problems.Linear(name="net")(x, train)
        return z * jnp.exp(self.param("temperature", nn.initializers.ones, (1, 3)))


def test_a_loose_parameter_is_refused_or_materialised():
    module = WithTemperature()
    problem = problems.problem(CosineDistance(), module=module)
    batch = problems.first_batch(problem)
    shape = batch.image.shape[1:]
    with pytest.raises(StructureError, match="temperature"):
        cut.discover(problem.objective.network, problem.params, problem.frozen, shape)
    blocks = cut.discover(problem.objective.network, problem.params, problem.frozen, shape, "materialise")
    gradients, *_ = jax.jit(measure, static_argnums=0)(problem.objective, problem.params, problem.frozen, batch)
    rows = trees.ravel_batch(full(gradients))
    np.testing.assert_allclose(gram(gradients, blocks)[:, 0, 0], (rows**2).sum(1), rtol=1e-10)
