"""Define transforms of an image and stacks of views, and compose them."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from influence_ssl_jax import randomness


class Transform(abc.ABC):
    """A random map from one image to one image.

    Pixels are in [0, 1] on both sides. It is written for one example; `vmap` applies it to a batch. Subclasses are
    frozen dataclasses: the object is its own configuration.
    """

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "out_height out_width channels"]:
        """Transform one image with the random draws of `key`."""


@dataclasses.dataclass(frozen=True)
class Sequential(Transform):
    """Several transforms, one after the other, each with its own key.

    Attributes:
        transforms: The transforms in order of application.

    Examples:
        Two flips restore the image.

        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import Sequential
        >>> image = jnp.asarray([[[0.25], [0.75]]])
        >>> Sequential((HorizontalFlip(), HorizontalFlip()))(jax.random.key(0), image).ravel().tolist()
        [0.25, 0.75]
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
    """A transform applied with a probability; otherwise the image stays unchanged.

    Attributes:
        probability: Probability of applying the transform.
        transform: The transform; it keeps the size of the image.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import Randomly
        >>> image = jnp.asarray([[[0.25], [0.75]]])
        >>> Randomly(0.0, HorizontalFlip())(jax.random.key(0), image).ravel().tolist()
        [0.25, 0.75]
    """

    probability: float
    transform: Transform

    def __post_init__(self) -> None:
        """Refuse a probability outside [0, 1]."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"A probability lies in [0, 1], got {self.probability} for {self.transform}.")

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """Apply the transform with its probability."""
        coin, own = jax.random.split(key)
        return jnp.where(randomness.coin(coin, self.probability), self.transform(own, image), image)


class Views(abc.ABC):
    """A random map from one image to a stack of views.

    A loss compares the views. The map is written for one example; `vmap` applies it to a batch. Subclasses are frozen
    dataclasses: the object is its own configuration. Pixels of the image are in [0, 1]; those of the views need not be
    (Gaussian noise).
    """

    @abc.abstractmethod
    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "views out_height out_width channels"]:
        """Draw the views of one image."""


@dataclasses.dataclass(frozen=True)
class Augmented(Views):
    """One independent view for each transform.

    The same transform twice gives SimCLR's pair; two different ones give an asymmetric pair.

    Attributes:
        transforms: One transform for each view; their results have the same size.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.colour import Solarise
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import Augmented
        >>> views = Augmented((HorizontalFlip(), Solarise(0.5)))(jax.random.key(0), jnp.asarray([[[0.25], [0.75]]]))
        >>> views.reshape(2, 2).tolist()
        [[0.75, 0.25], [0.25, 0.25]]
    """

    transforms: tuple[Transform, ...]

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "views out_height out_width channels"]:
        """Draw the views."""
        keys = jax.random.split(key, len(self.transforms))
        if len(set(self.transforms)) == 1:
            # vmap compiles the transform once; a loop would compile it once for each view.
            return jax.vmap(self.transforms[0], (0, None))(keys, image)
        return jnp.stack([transform(k, image) for k, transform in zip(keys, self.transforms, strict=True)])


@dataclasses.dataclass(frozen=True)
class AgainstClean(Views):
    """The clean image and its transform: a perturbation that can be scored.

    Attributes:
        transform: The perturbation; it keeps the size of the image.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import AgainstClean
        >>> views = AgainstClean(HorizontalFlip())(jax.random.key(0), jnp.asarray([[[0.25], [0.75]]]))
        >>> views.reshape(2, 2).tolist()
        [[0.25, 0.75], [0.75, 0.25]]
    """

    transform: Transform

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "2 height width channels"]:
        """Stack the clean image and the transformed one.

        Raises:
            ValueError: If the transform changes the size of the image.
        """
        transformed = self.transform(key, image)
        if transformed.shape != image.shape:
            raise ValueError(
                f"A perturbation is compared with the clean image and must keep its shape {image.shape}, got "
                f"{transformed.shape} from {self.transform}; let it keep the size, or resize the images first."
            )
        return jnp.stack([image, transformed])
