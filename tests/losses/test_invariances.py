"""What a loss must not see: the order of examples, the basis, the scale, Barlow's affine maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_ssl_jax.losses import (
    BYOL,
    BarlowTwins,
    CosineDistance,
    Embeddings,
    SimCLR,
    SimSiam,
    SquaredEuclid,
    VICReg,
)
from tests.losses.cases import BATCH, LOSSES, WIDTH, draw, embeddings, name, value

seeds = st.integers(0, 2**31)
ROTATION_INVARIANT = (SimCLR(0.5), BYOL(), SimSiam(), CosineDistance(), SquaredEuclid())
SCALE_INVARIANT = (SimCLR(0.5), BYOL(), SimSiam(), CosineDistance())

PAIRS = (SimCLR(0.5), BYOL(), BarlowTwins(), SimSiam(), VICReg(), CosineDistance(), SquaredEuclid())


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@given(seed=seeds)
def test_order_of_the_batch(loss, seed):
    given_order = embeddings(loss, seed)
    order = np.random.default_rng(seed).permutation(BATCH)
    permuted = Embeddings(given_order.online[:, order], given_order.target[:, order], given_order.label[order])
    np.testing.assert_allclose(value(loss, permuted), value(loss, given_order), rtol=1e-12)


@pytest.mark.parametrize("loss", ROTATION_INVARIANT, ids=name)
@given(seed=seeds)
def test_rotation(loss, seed):
    given_basis = embeddings(loss, seed)
    rotation = jnp.asarray(np.linalg.qr(draw(seed, WIDTH, WIDTH))[0])
    rotated = Embeddings(given_basis.online @ rotation, given_basis.target @ rotation)
    np.testing.assert_allclose(value(loss, rotated), value(loss, given_basis), rtol=1e-11)


@pytest.mark.parametrize("loss", SCALE_INVARIANT, ids=name)
@given(seed=seeds, exponent=st.floats(-100, 100))
def test_scale_of_every_example(loss, seed, exponent):
    given_scale = embeddings(loss, seed)
    scales = jnp.asarray(10.0**exponent * np.random.default_rng(seed).uniform(0.5, 2, size=(2, BATCH, 1)))
    scaled = Embeddings(given_scale.online * scales, given_scale.target * scales)
    np.testing.assert_allclose(value(loss, scaled), value(loss, given_scale), rtol=1e-11)


@given(seed=seeds)
def test_barlow_twins_sees_no_affine_map_of_a_feature(seed):
    first, second = jnp.asarray(draw(seed, 2, BATCH, WIDTH))
    factor, shift = jnp.asarray(draw(seed + 1, 2, 1, WIDTH))
    factor = jnp.abs(factor) + 0.1
    loss = BarlowTwins()
    plain = value(loss, Embeddings(jnp.stack([first, second])))
    np.testing.assert_allclose(value(loss, Embeddings(jnp.stack([first, factor * second + shift]))), plain, rtol=1e-9)
    same = value(loss, Embeddings(jnp.stack([first, first])))
    np.testing.assert_allclose(value(loss, Embeddings(jnp.stack([first, factor * first + shift]))), same, rtol=1e-9)


@given(seed=seeds)
def test_vicreg_sees_no_shift_of_both_views(seed):
    views, shift = jnp.asarray(draw(seed, 2, BATCH, WIDTH)), jnp.asarray(draw(seed + 1, WIDTH))
    shifted = value(VICReg(), Embeddings(views + 100 * shift[None, None]))
    np.testing.assert_allclose(shifted, value(VICReg(), Embeddings(views)), rtol=1e-9)


@given(seed=seeds)
def test_losses_of_pairs_are_symmetric_in_the_views(seed):
    for loss in PAIRS:
        ours = embeddings(loss, seed)
        swapped = Embeddings(ours.online[::-1], ours.target[::-1])
        np.testing.assert_allclose(value(loss, swapped), value(loss, ours), rtol=1e-11)
