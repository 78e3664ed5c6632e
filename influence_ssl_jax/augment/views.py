"""What views are: a key and an image in, a stack of images out."""

import abc

from jaxtyping import Array, Float, Key


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
