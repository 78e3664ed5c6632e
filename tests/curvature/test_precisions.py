"""C is one matrix: its products agree between float32 and float64, whatever is drawn to make it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax import trees
from influence_ssl_jax.augment.recipes import PERTURBATIONS, PRETRAINING
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.curvature.products import matvec
from influence_ssl_jax.data import Arrays, ToInput, resident
from influence_ssl_jax.losses import BYOL, BarlowTwins, CosineDistance, SimCLR, SimSiam, Supervised, VICReg
from influence_ssl_jax.problem import Problem
from tests import problems

KINDS = ("ggn", "fisher", "empirical_fisher", "hessian")
VIEWS = {**PERTURBATIONS, **PRETRAINING}
SIDE = 14  # the least that a blur of 13 pixels reaches across


@dataclasses.dataclass(frozen=True)
class Drawn(Views):
    """Views that were drawn before, held in the channels of the image."""

    count: int

    def __call__(self, key, image):
        del key
        return jnp.stack(jnp.split(image, self.count, axis=-1))


@functools.cache
def resident_set(precision):
    """12 smooth 8-bit images with labels, so that a shifted or mirrored view is another one; integers of a precision."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 3, SIDE)[None, :, None, None] * rng.uniform(0.5, 3, (12, 1, 1, 3)))
    noisy = 0.5 + 0.4 * waves + rng.uniform(-0.2, 0.2, (12, SIDE, SIDE, 3))
    pixels = (255 * np.clip(noisy, 0, 1)).astype(np.uint8)
    return resident(Arrays(pixels, labels=np.arange(12) % 3).open(), ToInput(SIDE, SIDE), 12, 6, seed=0)


def views_of(name, precision):
    """The views of the resident set for parameters of a type: [batches, views, …]."""
    return drawn(VIEWS[name], precision)


@functools.cache
def drawn(views, precision):
    """`views_of`, once for recipes of two names, compiled as a whole."""
    with jax.enable_x64(precision == "float64"):
        objective = dataclasses.replace(problems.objective(CosineDistance(), problems.Linear()), views=views)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), resident_set(precision))
        images = np.asarray(jax.jit(lambda batch: objective.images(batch, precision))(flat))
        return np.moveaxis(images.reshape(len(images), 2, 6, SIDE, SIDE, 3), 1, 0)


@functools.cache
def compiled(loss, count, precision):
    """`C v` of each kind from parameters, frozen variables, the resident set and v."""

    @jax.jit
    def every(params, frozen, batches, vector):
        objective = dataclasses.replace(problems.objective(loss, problems.Linear()), views=Drawn(count))
        of = [Problem(params, frozen, batches, objective, kind, samples=2) for kind in KINDS]
        return [trees.ravel(matvec(problem)(vector)) for problem in of]

    return every


def products(loss, name, precision):
    """`C v` of each kind, for one v, of a linear network."""
    with jax.enable_x64(precision == "float64"):
        views = views_of(name, precision)
        image = jnp.asarray(np.concatenate(list(np.moveaxis(views, 1, 0)), axis=-1))
        batches = dataclasses.replace(resident_set(precision), image=image)
        params, vector = (problems.variables(problems.Linear(), seed, SIDE, 3)[0] for seed in (0, 1))
        frozen = (
            {"target": {"params": trees.scale(0.5, params)}}
            if loss.compares_with_target and not loss.target_is_online
            else {}
        )
        given = trees.astype((params, frozen, batches, vector), precision)
        return [np.asarray(product, np.float64) for product in compiled(loss, views.shape[1], precision)(*given)]


@pytest.mark.parametrize("name", VIEWS)
def test_products_agree_between_precisions_for_every_kind_and_every_recipe(name):
    """The views and the products up to rounding: no threshold is passed on one side alone."""
    single, double = views_of(name, "float32"), views_of(name, "float64")
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, atol=1e-4)
    assert float(np.ptp(double, axis=1).max()) > 0.1 or name == "supervised"  # two views that differ
    loss = Supervised() if name == "supervised" else CosineDistance()
    compare(loss, name)


@pytest.mark.parametrize(
    "loss", [SimCLR(0.5), BYOL(), BarlowTwins(), SimSiam(), VICReg()], ids=lambda loss: type(loss).__name__
)
def test_products_agree_between_precisions_for_every_pretraining_loss(loss):
    compare(loss, "byol")


def compare(loss, name):
    for kind, one, other in zip(KINDS, *(products(loss, name, each) for each in ("float32", "float64")), strict=True):
        assert np.linalg.norm(one - other) < 2e-4 * np.linalg.norm(other), kind
