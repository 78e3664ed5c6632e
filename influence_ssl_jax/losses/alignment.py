"""Measure the distance between the embeddings of two views of an example.

Each measurement is half the squared norm of a residual, `½‖r‖²`.
"""

import abc
import dataclasses
from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, is_zero, unit

Path: TypeAlias = Literal["both", "clean", "perturbed"]
"""The view whose embedding is differentiated; the other one is a constant. View 0 is the clean one."""


class Measurement(Loss):
    """A separable loss with one residual `r` per example: `½‖r‖²`."""

    separable: ClassVar[bool] = True

    @abc.abstractmethod
    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """Compute one residual per example, zero where `degenerate` is true."""

    @abc.abstractmethod
    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Mark the examples whose measurement is undefined.

        Their residual, value and gradient are zero.
        """

    @abc.abstractmethod
    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """Bound the value that rounding gives two equal views with this embedding."""

    def values(self, residuals: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """Compute the value `½‖r‖²` of each example."""
        return jnp.sum(residuals**2, axis=1) / 2

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """Return the residuals."""
        return self.residuals(embeddings)

    def head(self, outputs: Float[Array, "batch width"]) -> Float[Array, ""]:
        """Average the values over the batch."""
        return jnp.mean(self.values(outputs))

    def head_square_root(
        self, outputs: Float[Array, "batch width"], noise: Float[Array, "batch width"]
    ) -> Float[Array, "batch width"]:
        """Return `noise / √b`: the Hessian of the head is `I/b`."""
        return noise / outputs.shape[0] ** 0.5


@dataclasses.dataclass(frozen=True)
class CosineDistance(Measurement):
    """The cosine distance `1 − cos(z, z') = ½‖r‖²`, with `r = z/‖z‖ − z'/‖z'‖`.

    `½‖r‖²` keeps its digits if the views nearly agree, and `1 − u·u'` does not. An example with a zero embedding has no
    angle: it is `degenerate`.
    Reference: arXiv 2412.17170, section 3.

    Attributes:
        gradient: The view whose embedding is differentiated.

    Examples:
        The vectors (1, 0) and (0, 2) are perpendicular: their cosine is 0, so their distance is 1.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import CosineDistance, Embeddings
        >>> views = Embeddings(jnp.asarray([[[1.0, 0.0]], [[0.0, 2.0]]]))
        >>> round(float(CosineDistance()(views)), 6)
        1.0
    """

    gradient: Path = "both"

    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """Compute `z/‖z‖ − z'/‖z'‖` for each example."""
        clean, perturbed = _constant_except(self.gradient, *embeddings.pair())
        undefined = self.degenerate(embeddings)[:, None]
        return jnp.where(undefined, 0.0, unit(clean) - unit(perturbed))

    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """Return `½ (32 u)²`, where `u` is the unit roundoff.

        The two unit vectors are each off by at most 16 units.
        """
        return jnp.full(embedding.shape[0], _noise(embedding) / 2, embedding.dtype)

    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Mark the examples with a zero embedding of either view."""
        clean, perturbed = embeddings.pair()
        return is_zero(clean) | is_zero(perturbed)


@dataclasses.dataclass(frozen=True)
class SquaredEuclid(Measurement):
    """The squared distance `‖z − z'‖² = ½‖r‖²`, with `r = √2 (z − z')`.

    It is defined for all embeddings.

    Attributes:
        gradient: The view whose embedding is differentiated.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import Embeddings, SquaredEuclid
        >>> views = Embeddings(jnp.asarray([[[3.0, 0.0]], [[0.0, 4.0]]]))
        >>> round(float(SquaredEuclid()(views)), 4)  # 3² + 4²
        25.0
    """

    gradient: Path = "both"

    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """Compute `√2 (z − z')` for each example."""
        clean, perturbed = _constant_except(self.gradient, *embeddings.pair())
        return 2**0.5 * (clean - perturbed)

    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """Return `(32 u ‖z‖)²`, where `u` is the unit roundoff."""
        return _noise(embedding) * jnp.sum(embedding**2, axis=1)

    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Mark no example."""
        return jnp.zeros(embeddings.online.shape[1], bool)


def _noise(embedding: Array) -> float:
    """Return `(32 u)²`, where `u` is the unit roundoff.

    It is that of the embeddings' type or of float32, whichever is smaller.
    """
    return (32 * min(float(jnp.finfo(dtype).eps) for dtype in (embedding.dtype, jnp.float32))) ** 2


def _constant_except(path: Path, clean: Array, perturbed: Array) -> tuple[Array, Array]:
    """Stop the gradient of the view that is not differentiated."""
    if path == "clean":
        return clean, jax.lax.stop_gradient(perturbed)
    if path == "perturbed":
        return jax.lax.stop_gradient(clean), perturbed
    return clean, perturbed
