"""EK-FAC and K-FAC of convolutions of every geometry, each step from its definition by loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.ihvp import EKFAC, KFAC
from tests.ihvp.grid import given

KEY = jax.random.key(0)


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
    parts = []
    for top in range(0, padded.shape[0] - reach[0] + 1, strides[0]):
        for left in range(0, padded.shape[1] - reach[1] + 1, strides[1]):
            window = padded[top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
            split = np.stack(np.split(window, groups, axis=2)).reshape(groups, -1)
            parts.append(np.concatenate([split, np.ones((groups, 1))], axis=1) if conv.use_bias else split)
    return np.stack(parts)


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
