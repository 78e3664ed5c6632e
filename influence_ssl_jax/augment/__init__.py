"""Random views of an image: perturbations that scores compare and augmentations that pretraining compares."""

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import Views

__all__ = ["GaussianNoise", "Views"]
