"""Draw random views of an image for scores and for pretraining.

The views of scores are perturbations, those of pretraining augmentations.
"""

from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.augment.transform import Views

__all__ = ["GaussianNoise", "Views"]
