"""Views made of transforms."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax.augment.transform import Transform
from influence_ssl_jax.augment.views import Views


@dataclasses.dataclass(frozen=True)
class Augmented(Views):
    """One independently drawn view per transform: twice the same one is SimCLR's pair, two are an asymmetric pair.

    Attributes:
        transforms: One per view; their results have the same size.
    """

    transforms: tuple[Transform, ...]

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "views out_height out_width channels"]:
        """Draw the views."""
        keys = jax.random.split(key, len(self.transforms))
        if len(set(self.transforms)) == 1:
            # Compiled once, where one after the other would be compiled once per view.
            return jax.vmap(self.transforms[0], (0, None))(keys, image)
        return jnp.stack([transform(k, image) for k, transform in zip(keys, self.transforms, strict=True)])


@dataclasses.dataclass(frozen=True)
class AgainstClean(Views):
    """The image as it is beside its transform: a perturbation that a score can be taken of.

    Attributes:
        transform: The perturbation; the image keeps its size.
    """

    transform: Transform

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "2 height width channels"]:
        """The clean image and the transformed one.

        Raises:
            ValueError: The transform changes the image's size.
        """
        transformed = self.transform(key, image)
        if transformed.shape != image.shape:
            raise ValueError(
                f"A perturbation is compared with the image as it is and must keep its shape {image.shape}, got "
                f"{transformed.shape} from {self.transform}; let it keep the size, or resize the images first."
            )
        return jnp.stack([image, transformed])
