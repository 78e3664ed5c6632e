"""EK-FAC against dense formulas: exact where curvature is a Kronecker product, and its own definition elsewhere."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.errors import CurvatureError
from influence_ssl_jax.ihvp import EKFAC, KFAC, Damping, Diagonal, Exact
from influence_ssl_jax.losses import CosineDistance, SimCLR
from tests.ihvp.grid import Deep, example_gradients, given, grid, measured_by, with_spectrum

KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize("backend", [EKFAC(), KFAC()], ids=["EKFAC", "KFAC"])


def flat(problem):
    """The parameters' own coordinates of each block, as positions in the ravelled vector."""
    places = trees.unravel(problem.params, jnp.arange(trees.size(problem.params), dtype=float))
    return lambda block: np.asarray(block.read(places)).astype(int)


@BOTH
@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [((4.0, 2.0, 1.0, 0.5), (3.0, 1.0, 0.2)), ((2.0, 2.0, 1.0, 0.0), (1.0, 0.5, 0.5))],
    ids=["simple", "repeated"],
)
def test_prescribed_spectra(backend, alpha, sigma):
    """C = A ⊗ S with known eigenvalues, repeated and zero ones too: found, and inverted as the dense matrix is."""
    inputs, cotangents = with_spectrum(alpha, 1), with_spectrum(sigma, 2)
    problem = grid(inputs, cotangents, Deep((3,), bias=False))
    state = jax.jit(backend.fit)(problem, KEY)
    (values,) = state.eigenvalues.values()
    np.testing.assert_allclose(np.sort(values), np.sort(np.outer(alpha, sigma).ravel()), atol=1e-12)
    dense = np.kron(inputs.T @ inputs / 4, cotangents.T @ cotangents / 3)
    vector = np.random.default_rng(0).normal(size=(4, 3))
    for damping in (0.3, 0.01, 0.3):  # another damping is honoured, and leaves nothing behind
        got = backend.solve(state, {"Dense_0": {"kernel": jnp.asarray(vector)}}, jnp.asarray(damping))
        want = np.linalg.solve(dense + damping * np.eye(12), vector.ravel())
        np.testing.assert_allclose(trees.ravel(got), want, rtol=1e-10, atol=1e-12)


@BOTH
@pytest.mark.parametrize("num_batches", [1, 4])
def test_every_block_of_a_deep_linear_net_is_exact(backend, num_batches):
    """With biases, in any number of batches, each block damped by its own mean eigenvalue."""
    rng = np.random.default_rng(0)
    problem = grid(rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), Deep(), num_batches)
    state = jax.jit(backend.fit)(problem, KEY)
    rows = np.asarray(trees.ravel_batch(example_gradients(problem)))
    dense = rows.T @ rows / len(rows)
    damping = backend.resolve(state, Damping(0.2))
    vector = rng.normal(size=rows.shape[1])
    got = np.asarray(trees.ravel(backend.solve(state, trees.unravel(problem.params, jnp.asarray(vector)), damping)))
    for block in state.blocks:
        at = flat(problem)(block).ravel()
        part = dense[np.ix_(at, at)]
        own = 0.2 * np.trace(part) / len(at)
        np.testing.assert_allclose(damping[block.name], own, rtol=1e-10)
        want = np.linalg.solve(part + own * np.eye(len(at)), vector[at])
        np.testing.assert_allclose(got[at], want, rtol=1e-10)
    assert float(damping["Dense_0"]) != pytest.approx(float(damping["Dense_1"]), rel=0.01)


class OneConv(nn.Module):
    conv: nn.Conv

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        return jnp.tanh(self.conv(x)).mean((1, 2))


GEOMETRIES = {
    "stride": (nn.Conv(4, (3, 2), (2, 1), ((1, 0), (0, 1)), kernel_dilation=(1, 1)), 1),
    "dilation": (nn.Conv(3, (2, 2), (1, 1), ((0, 0), (0, 0)), kernel_dilation=(2, 1), use_bias=False), 1),
    "groups": (nn.Conv(4, (2, 3), (1, 2), ((1, 1), (2, 0)), kernel_dilation=(1, 1), feature_group_count=2), 2),
}


def patches(image, conv, groups):
    """By loops: what each output position reads, [positions, groups, window · channels (+ 1)]."""
    strides, dilation = conv.strides, conv.kernel_dilation
    padded = np.pad(image, (*conv.padding, (0, 0)))
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, dilation, strict=True)]
    found = []
    for top in range(0, padded.shape[0] - reach[0] + 1, strides[0]):
        for left in range(0, padded.shape[1] - reach[1] + 1, strides[1]):
            window = padded[top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
            split = np.stack(np.split(window, groups, axis=2)).reshape(groups, -1)
            found.append(np.concatenate([split, np.ones((groups, 1))], axis=1) if conv.use_bias else split)
    return np.stack(found)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolutions_by_loops(geometry):
    """Patches, factors, eigenbases, corrected eigenvalues and the inverse, each from its definition in numpy."""
    conv, groups = GEOMETRIES[geometry]
    rng = np.random.default_rng(3)
    images, cotangents = rng.normal(size=(6, 5, 5, 2)), rng.normal(size=(6, conv.features))
    problem = given(images, cotangents, np.arange(6), OneConv(conv))
    rows = np.stack([patches(image, conv, groups) for image in images])  # [n, t, g, i]
    kernel, bias = (np.asarray(problem.params["conv"].get(name, 0.0)) for name in ("kernel", "bias"))
    weights = np.moveaxis(kernel.reshape(-1, groups, conv.features // groups), 1, 0)
    written = np.einsum("ntgi,gio->ntgo", rows[..., : weights.shape[1]], weights)
    written = written + (bias.reshape(groups, -1) if conv.use_bias else 0.0)
    slopes = cotangents.reshape(6, 1, groups, -1) * (1 - np.tanh(written) ** 2) / rows.shape[1]
    gradients = np.einsum("ntgi,ntgo->ngio", rows, slopes)
    inner = np.einsum("ntgi,ntgj->gij", rows, rows) / (6 * rows.shape[1])
    outer = np.einsum("ntgi,ntgj->gij", slopes, slopes) / 6
    (alpha, left), (sigma, right) = np.linalg.eigh(inner), np.linalg.eigh(outer)
    squares = np.mean(np.einsum("gik,ngio,gol->ngkl", left, gradients, right) ** 2, axis=0)
    products = np.einsum("gk,gl->gkl", alpha, sigma)

    vector = rng.normal(size=gradients.shape[1:])
    rotated = np.einsum("gik,gio,gol->gkl", left, vector, right)
    for backend, values in ((EKFAC(), squares), (KFAC(), products)):
        state = jax.jit(backend.fit)(problem, KEY)
        (block,) = state.blocks
        kept = block.write(jnp.asarray(vector))
        tree = {"conv": {path[-1]: value for path, value in kept.items()}}
        got = block.read(backend.solve(state, tree, jnp.asarray(0.01)))
        want = np.einsum("gik,gkl,gol->gio", left, rotated / (values + 0.01), right)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
        mean = np.mean(np.sum(gradients**2, axis=(1, 2, 3))) / vector.size
        np.testing.assert_allclose(state.mean["conv"], mean, rtol=1e-12)


def test_low_rank_keeps_the_leading_eigenvectors_and_the_complement():
    """Against the dense matrix `Q Λ Qᵀ + level (I − QQᵀ)`: solve, and forms through the gradients' norms."""
    rng = np.random.default_rng(5)
    images, cotangents = rng.normal(size=(8, 1, 1, 5)), rng.normal(size=(8, 4))
    problem = given(images, cotangents, np.arange(8), Deep((4,), bias=False))
    backend = EKFAC(rank=2)
    state = jax.jit(backend.fit)(problem, KEY)
    inputs = images[:, 0, 0]
    left = np.linalg.eigh(inputs.T @ inputs)[1][:, -2:]
    right = np.linalg.eigh(cotangents.T @ cotangents)[1][:, -2:]
    basis = np.einsum("ik,ol->iokl", left, right).reshape(20, 4)
    rows = np.einsum("ni,no->nio", inputs, cotangents).reshape(8, 20)
    values = np.mean((rows @ basis) ** 2, axis=0)
    level = (np.mean(np.sum(rows**2, axis=1)) - values.sum()) / 16
    dense = (basis * values) @ basis.T + level * (np.eye(20) - basis @ basis.T)
    gradients = measured_by(problem)
    found = np.asarray(trees.ravel_batch(gradients.full()))
    for damping in (0.05, 2.0):
        want = found @ np.linalg.solve(dense + damping * np.eye(20), found.T)
        got = backend.bilinear_form(state, gradients, gradients, jnp.asarray(damping))
        np.testing.assert_allclose(got, want, rtol=1e-10)
        np.testing.assert_allclose(
            backend.quadratic_form(state, gradients, jnp.asarray(damping)), np.diag(want), rtol=1e-10
        )


@functools.cache
def fisher(loss):
    """A problem and its dense Fisher, made of the very draws that a backend with three samples uses."""
    problem = problems.problem(loss, "fisher", module=problems.Small(), samples=3)
    state = jax.jit(Exact().fit)(problem, KEY)
    return problem, np.asarray((state.eigenvectors * state.eigenvalues[None]) @ state.eigenvectors.T)


@pytest.mark.parametrize("loss", [CosineDistance(), SimCLR(0.5)], ids=["separable", "coupled"])
def test_drawn_curvature_has_the_trace_of_every_block_and_batchnorm_exactly(loss):
    problem, dense = fisher(loss)
    states = {kind: jax.jit(kind(samples=3).fit)(problem, KEY) for kind in (EKFAC, KFAC, Diagonal)}
    for block in states[EKFAC].blocks:
        at = flat(problem)(block).ravel()
        part = dense[np.ix_(at, at)]
        for state in states.values():
            np.testing.assert_allclose(state.mean[block.name] * len(at), np.trace(part), rtol=1e-10)
        np.testing.assert_allclose(states[EKFAC].eigenvalues[block.name].sum(), np.trace(part), rtol=1e-10)
        np.testing.assert_allclose(states[Diagonal].eigenvalues[block.name], np.diag(part), rtol=1e-9, atol=1e-15)
        if block.name == "norm":
            for kind in (EKFAC, KFAC):
                np.testing.assert_allclose(block_matrix(states[kind], block), part, atol=1e-12 * np.trace(part))
    unlimited = jax.jit(EKFAC(samples=3, exact_limit=3).fit)(problem, KEY)
    np.testing.assert_allclose(unlimited.eigenvalues["norm"], states[Diagonal].eigenvalues["norm"], rtol=1e-12)


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
    problem, dense = fisher(CosineDistance())
    corrected, product = (jax.jit(kind(samples=3).fit)(problem, KEY) for kind in (EKFAC, KFAC))
    for block in corrected.blocks:
        if block.name != "norm":
            at = flat(problem)(block).ravel()
            part = dense[np.ix_(at, at)]
            errors = [np.linalg.norm(block_matrix(state, block) - part) for state in (corrected, product)]
            assert errors[0] < errors[1]


@pytest.mark.parametrize("backend", [EKFAC(), KFAC(), Diagonal()], ids=lambda backend: type(backend).__name__)
def test_a_hessian_is_refused(backend):
    problem = problems.problem(CosineDistance(), "hessian", module=problems.Small())
    with pytest.raises(CurvatureError, match="use CG or Exact"):
        backend.fit(problem, KEY)
