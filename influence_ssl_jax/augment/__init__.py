"""Draw random views of an image: perturbations of scores and augmentations of pretraining."""

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import Views

__all__ = ["GaussianNoise", "Views"]
