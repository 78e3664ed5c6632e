"""Add Gaussian noise to pixels: the perturbation of the score."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness
from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.configuration import POSITIVE, check_numbers


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Views):
    """The clean image and a noisy one, `x' = x + η`, `η ~ N(mean, σ²)`.

    The draws are independent for every pixel and channel.
    Reference: arXiv 2412.17170.

    Attributes:
        sigma: Standard deviation of the noise.
        mean: Mean of the noise.
        std: Unit of `sigma` and `mean` for each channel: 1 for pixels in [0, 1]; for noise on standardised pixels, the
            standard deviation that pixels are divided by.
        clip: `none` lets noisy pixels leave [0, 1], as the definition does; `unit` clips them.

    Examples:
        The first view is the image itself; the second one is noisy.

        >>> import jax, jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> views = isj.GaussianNoise(sigma=0.2)(jax.random.key(0), jnp.full((2, 2, 1), 0.5))
        >>> views.shape, bool((views[0] == 0.5).all()), bool((views[1] == 0.5).any())
        ((2, 2, 2, 1), True, False)
    """

    sigma: float = 0.2
    mean: float = 0.0
    std: tuple[float, ...] = (1.0,)
    clip: Literal["none", "unit"] = "none"

    def __post_init__(self) -> None:
        """Refuse noise without spread: the score of an unperturbed image is 0/0."""
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}.")
        if not min(self.std) > 0:
            raise ValueError(f"std must be positive in every channel, got {self.std}.")
        check_numbers(self, sigma=POSITIVE, std=POSITIVE, mean=(-math.inf, math.inf))

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "2 height width channels"]:
        """Stack the clean image and the noisy one.

        Raises:
            ValueError: If `std` has neither one entry nor one for each channel.
        """
        if len(self.std) not in (1, image.shape[-1]):
            raise ValueError(f"std needs 1 or {image.shape[-1]} entries for this image, got {len(self.std)}.")
        unit = jnp.asarray(self.std, image.dtype)[None, None, :]
        # One flat draw, because XLA compiles a draw with several axes several times as long; the numbers are the same.
        drawn = randomness.normal(key, (image.size,), image.dtype).reshape(image.shape)
        noisy = image + unit * (self.mean + self.sigma * drawn)
        if self.clip == "unit":
            noisy = jnp.clip(noisy, 0, 1)
        return jnp.stack([image, noisy])
