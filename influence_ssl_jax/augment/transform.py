"""Transforms of one image, pairs of views, and how both are composed."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness


class Transform(abc.ABC):
    """A random map from one image to one image, pixels in [0, 1] on both sides.

    Written for one example; `vmap` makes it a batch. Subclasses are frozen dataclasses: the object is its own
    configuration.
    """

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "out_height out_width channels"]:
        """Draw the transform of one image."""


@dataclasses.dataclass(frozen=True)
class Sequential(Transform):
    """One transform after the other, each with its own key.

    Attributes:
        transforms: In order of application.
    """

    transforms: tuple[Transform, ...]

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "out_height out_width channels"]:
        """Apply all transforms."""
        for position, transform in enumerate(self.transforms):
            image = transform(jax.random.fold_in(key, position), image)
        return image


@dataclasses.dataclass(frozen=True)
class Randomly(Transform):
    """A transform that is applied with a probability, and else leaves the image as it is.

    Attributes:
        probability: Of applying it.
        transform: It; the image keeps its size.
    """

    probability: float
    transform: Transform

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"A probability lies in [0, 1], got {self.probability} for {self.transform}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Apply the transform or not."""
        coin, own = jax.random.split(key)
        return jnp.where(randomness.coin(coin, self.probability), self.transform(own, image), image)


class Views(abc.ABC):
    """A random map from one image to the stack of views that a loss compares.

    Written for one example; `vmap` makes it a batch. Subclasses are frozen dataclasses: the object is its own
    configuration. Pixels are in [0, 1] on the way in, and need not be on the way out (Gaussian noise).
    """

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "views out_height out_width channels"]:
        """Draw the views of one image."""


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
