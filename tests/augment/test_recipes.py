"""Composition, and the named recipes: what they consist of, and that jit and vmap hold in either precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from influence_ssl_jax.augment.colour import ColourJitter, Solarise
from influence_ssl_jax.augment.crop import HorizontalFlip, RandomResizedCrop
from influence_ssl_jax.augment.recipes import PERTURBATIONS, PRETRAINING, pretraining_transform
from influence_ssl_jax.augment.transform import AgainstClean, Augmented, Randomly, Sequential

RECIPES = PRETRAINING | PERTURBATIONS
IMAGES = np.random.default_rng(0).uniform(size=(4, 9, 8, 3))
KEYS = jax.random.split(jax.random.key(0), 4)


def settings(recipe: Augmented, view: int) -> dict[str, object]:
    """Of one view: its transforms with their probabilities, by name."""
    transform = recipe.transforms[view]
    assert isinstance(transform, Sequential)
    parts = [
        (part.transform, part.probability) if isinstance(part, Randomly) else (part, 1.0)
        for part in transform.transforms
    ]
    return {type(part).__name__: (part, probability) for part, probability in parts}


def test_table_1():
    for view in range(2):
        parts = settings(PRETRAINING["table1"], view)
        assert parts["ColourJitter"] == (ColourJitter(0.8, 0.8, 0.8, 0.2), 0.8)
        assert parts["RandomResizedCrop"] == (RandomResizedCrop((0.08, 1.0)), 1.0)
        probabilities = {name: parts[name][1] for name in ("Grayscale", "HorizontalFlip", "GaussianBlur", "Solarise")}
        assert probabilities == {"Grayscale": 0.2, "HorizontalFlip": 0.5, "GaussianBlur": 0.2, "Solarise": 0.2}


def test_solo_learns_symmetric_and_asymmetric_settings():
    for view in range(2):
        symmetric = settings(PRETRAINING["simclr"], view)
        assert symmetric["ColourJitter"] == (ColourJitter(0.8, 0.8, 0.8, 0.2), 0.8)
        assert symmetric["GaussianBlur"][1] == 0.5
        assert "Solarise" not in symmetric
    first, second = (settings(PRETRAINING["byol"], view) for view in range(2))
    assert second.pop("Solarise") == (Solarise(), 0.2)
    assert first == second
    assert first["ColourJitter"] == (ColourJitter(0.4, 0.4, 0.2, 0.1), 0.8)
    assert "GaussianBlur" not in first
    assert PRETRAINING["barlow_twins"] == PRETRAINING["byol"]
    for view in range(2):
        simsiam, vicreg = (settings(PRETRAINING[name], view) for name in ("simsiam", "vicreg"))
        assert simsiam["ColourJitter"] == (ColourJitter(0.4, 0.4, 0.4, 0.1), 0.8)
        assert (simsiam["RandomResizedCrop"][0].scale, vicreg["RandomResizedCrop"][0].scale) == ((0.08, 1), (0.2, 1))
        assert simsiam["GaussianBlur"][1] == 0.5
        assert vicreg["ColourJitter"] == first["ColourJitter"]
        assert vicreg["Solarise"] == (Solarise(), 0.1)
        assert "Solarise" not in simsiam
        assert "GaussianBlur" not in vicreg


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_recipe_keeps_size_and_precision(name, dtype):
    views = jax.eval_shape(jax.vmap(RECIPES[name], out_axes=1), KEYS, jnp.asarray(IMAGES, dtype))
    assert views.shape == (1 if name == "supervised" else 2, *IMAGES.shape)
    assert views.dtype == dtype


@pytest.mark.parametrize("name", ["table1", "flip_jitter_blur"])
@pytest.mark.parametrize("double", [True, False])
def test_views_belong_to_the_key_and_not_to_the_place_in_the_batch(name, double):
    with jax.enable_x64(double):
        images = jnp.asarray(IMAGES, jnp.float64 if double else jnp.float32)
        draw = jax.jit(jax.vmap(RECIPES[name], out_axes=1))
        views = draw(KEYS, images)
        turned = draw(KEYS[::-1], images[::-1])
        assert bool(jnp.isfinite(views).all())
        assert 0 <= views.min() <= views.max() <= 1 + 1e-6
        np.testing.assert_allclose(views, turned[:, ::-1], atol=1e-12 if double else 1e-6)
        assert not jnp.allclose(views[0], views[1])


def test_pretraining_brings_any_image_to_the_wanted_size():
    transform = pretraining_transform(ColourJitter(0.1), blur=0.0, solarise=0.0, height=5, width=6)
    assert jax.eval_shape(transform, KEYS[0], jnp.zeros((20, 30, 3))).shape == (5, 6, 3)


def test_a_perturbation_must_keep_the_size():
    views = AgainstClean(RandomResizedCrop(height=4))
    with pytest.raises(ValueError, match=r"must keep its shape \(9, 8, 3\), got \(4, 8, 3\)"):
        jax.eval_shape(views, KEYS[0], jnp.asarray(IMAGES[0]))


def test_randomly_applies_with_its_probability():
    keys = jax.random.split(jax.random.key(1), 2000)
    image = jnp.asarray(IMAGES[0])
    drawn = jax.jit(jax.vmap(Randomly(0.3, HorizontalFlip()), (0, None)))(keys, image)
    flipped = (drawn == image[None, :, ::-1]).all((1, 2, 3))
    assert ((drawn == image[None]).all((1, 2, 3)) ^ flipped).all()
    assert flipped.mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 2000))


def test_parts_of_a_sequence_and_views_of_a_pair_are_drawn_independently():
    coin = Randomly(0.5, HorizontalFlip())
    keys = jax.random.split(jax.random.key(2), 2000)
    image = jnp.asarray(IMAGES[0])
    twice = jax.jit(jax.vmap(Sequential((coin, coin)), (0, None)))(keys, image)
    assert (twice == image[None]).all((1, 2, 3)).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2000))
    pairs = jax.jit(jax.vmap(Augmented((coin, coin)), (0, None)))(keys, image)
    assert (pairs[:, 0] == pairs[:, 1]).all((1, 2, 3)).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2000))


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"A probability lies in \[0, 1\], got 1.5"):
        Randomly(1.5, HorizontalFlip())
