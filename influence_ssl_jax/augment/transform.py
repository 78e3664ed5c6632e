"""What a transform is, and the two ways to put transforms together."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


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
        return jnp.where(jax.random.bernoulli(coin, self.probability), self.transform(own, image), image)
