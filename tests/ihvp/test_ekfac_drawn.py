"""Factored and diagonal backends of drawn curvature, against the dense Fisher of the very same draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.ihvp import EKFAC, KFAC, Diagonal, Exact
from influence_ssl_jax.losses import CosineDistance, SimCLR
from tests import problems
from tests.ihvp.grid import places

KEY = jax.random.key(0)


@functools.cache
def drawn(loss, module):
    """A problem, its dense Fisher, and the states of the backends with three samples, of the very same draws."""
    problem = problems.problem(loss, "fisher", module=module, samples=3, image=3 if module == problems.Linear() else 6)
    backends = {kind: kind(samples=3) for kind in (EKFAC, KFAC, Diagonal)}
    if "norm" in problem.params:
        backends["limited"] = EKFAC(samples=3, exact_limit=3)
    fits = [Exact().fit, *(backend.fit for backend in backends.values())]
    exact, *states = jax.jit(lambda problem: [fit(problem, KEY) for fit in fits])(problem)
    dense = np.asarray((exact.eigenvectors * exact.eigenvalues[None]) @ exact.eigenvectors.T)
    return problem, dense, dict(zip(backends, states, strict=True))


@pytest.mark.parametrize(
    ("loss", "module"),
    [(CosineDistance(), problems.Small()), (SimCLR(0.5), problems.Linear())],
    ids=["separable", "coupled"],
)
def test_drawn_curvature_has_the_trace_of_every_block_and_batchnorm_exactly(loss, module):
    problem, dense, states = drawn(loss, module)
    for block in states[EKFAC].blocks:
        at = places(problem, block)
        part = dense[np.ix_(at, at)]
        for state in (states[kind] for kind in (EKFAC, KFAC, Diagonal)):
            np.testing.assert_allclose(state.mean[block.name] * len(at), np.trace(part), rtol=1e-10)
        np.testing.assert_allclose(states[EKFAC].eigenvalues[block.name].sum(), np.trace(part), rtol=1e-10)
        np.testing.assert_allclose(states[Diagonal].eigenvalues[block.name], np.diag(part), rtol=1e-9, atol=1e-15)
        if block.name == "norm":
            for kind in (EKFAC, KFAC):
                np.testing.assert_allclose(block_matrix(states[kind], block), part, atol=1e-12 * np.trace(part))
            limited = states["limited"].eigenvalues["norm"]
            np.testing.assert_allclose(limited, states[Diagonal].eigenvalues["norm"], rtol=1e-12)


def block_matrix(state, block):
    """The matrix that a state stands for, by applying `(C + I)⁻¹` to every direction and inverting that."""
    eye = jnp.eye(block.size).reshape(block.size, *block.read(state.params).shape)
    zeros = jax.tree.map(jnp.zeros_like, state.params)

    def solved(part):
        values = block.write(part)
        tree = jax.tree_util.tree_map_with_path(
            lambda path, leaf: values.get(tuple(key.key for key in path), leaf), zeros
        )
        return block.read(EKFAC().solve(state, tree, jnp.asarray(1.0))).reshape(-1)

    return np.linalg.inv(np.asarray(jax.jit(jax.vmap(solved))(eye))) - np.eye(block.size)


def test_corrected_eigenvalues_are_the_nearest_in_their_basis():
    """The correction never lies farther from the block than K-FAC does (arXiv 1806.03884, theorem 1)."""
    problem, dense, states = drawn(CosineDistance(), problems.Small())
    corrected, product = states[EKFAC], states[KFAC]
    for block in corrected.blocks:
        if block.name != "norm":
            at = places(problem, block)
            part = dense[np.ix_(at, at)]
            errors = [np.linalg.norm(block_matrix(state, block) - part) for state in (corrected, product)]
            assert errors[0] < errors[1]
