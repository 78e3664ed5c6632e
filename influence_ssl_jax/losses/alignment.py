"""The measurements: how far apart two views of an example are embedded, as half a squared residual."""

import abc
import dataclasses
from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from influence_ssl_jax.losses.functions import is_zero, unit
from influence_ssl_jax.losses.loss import Embeddings, Loss

Path: TypeAlias = Literal["both", "clean", "perturbed"]
"""Which view's embedding is differentiated; the other is a constant. View 0 is the clean one."""


class Measurement(Loss):
    """A separable loss with one residual `r` per example, whose value is `½‖r‖²`."""

    separable: ClassVar[bool] = True

    @abc.abstractmethod
    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """One residual per example; zero where `degenerate`."""

    @abc.abstractmethod
    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Examples for which the measurement is undefined; their residual, value and gradient are zero."""

    @abc.abstractmethod
    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """Return the value that rounding alone gives two equal views with this embedding, at most."""

    def values(self, residuals: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """`½‖r‖²` per example."""
        return jnp.sum(residuals**2, axis=1) / 2

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """The residuals."""
        return self.residuals(embeddings)

    def head(self, outputs: Float[Array, "batch width"]) -> Float[Array, ""]:
        """Mean of the values."""
        return jnp.mean(self.values(outputs))

    def head_square_root(
        self, outputs: Float[Array, "batch width"], noise: Float[Array, "batch width"]
    ) -> Float[Array, "batch width"]:
        """`noise / √b`: the Hessian of the head is `I/b`."""
        return noise / outputs.shape[0] ** 0.5


@dataclasses.dataclass(frozen=True)
class CosineDistance(Measurement):
    """`1 − cos(z, z') = ½‖r‖²` exactly, with `r = z/‖z‖ − z'/‖z'‖`.

    Unlike `1 − u·u'`, `½‖r‖²` keeps its digits where the views nearly agree. An example with a zero embedding has no
    angle: it is `degenerate`.
    Reference: arXiv 2412.17170, section 3.

    Attributes:
        gradient: Which view's embedding is differentiated.
    """

    gradient: Path = "both"

    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """`z/‖z‖ − z'/‖z'‖`."""
        clean, perturbed = _constant_except(self.gradient, *embeddings.pair())
        undefined = self.degenerate(embeddings)[:, None]
        return jnp.where(undefined, 0.0, unit(clean) - unit(perturbed))

    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """`½ (32 u)²`, u the unit roundoff: two unit vectors, each off by at most 16 of them."""
        return jnp.full(embedding.shape[0], _noise(embedding) / 2, embedding.dtype)

    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Where either embedding is zero."""
        clean, perturbed = embeddings.pair()
        return is_zero(clean) | is_zero(perturbed)


@dataclasses.dataclass(frozen=True)
class SquaredEuclid(Measurement):
    """`‖z − z'‖² = ½‖r‖²`, with `r = √2 (z − z')`; defined everywhere.

    Attributes:
        gradient: Which view's embedding is differentiated.
    """

    gradient: Path = "both"

    def residuals(self, embeddings: Embeddings) -> Float[Array, "batch width"]:
        """`√2 (z − z')`."""
        clean, perturbed = _constant_except(self.gradient, *embeddings.pair())
        return 2**0.5 * (clean - perturbed)

    def rounding(self, embedding: Float[Array, "batch width"]) -> Float[Array, " batch"]:
        """`(32 u ‖z‖)²`, u the unit roundoff."""
        return _noise(embedding) * jnp.sum(embedding**2, axis=1)

    def degenerate(self, embeddings: Embeddings) -> Bool[Array, " batch"]:
        """Nowhere."""
        return jnp.zeros(embeddings.online.shape[1], bool)


def _noise(embedding: Array) -> float:
    """`(32 u)²`, u the unit roundoff of the embedding's type, or of float32 where that is finer."""
    return (32 * min(float(jnp.finfo(dtype).eps) for dtype in (embedding.dtype, jnp.float32))) ** 2


def _constant_except(path: Path, clean: Array, perturbed: Array) -> tuple[Array, Array]:
    if path == "clean":
        return clean, jax.lax.stop_gradient(perturbed)
    if path == "perturbed":
        return jax.lax.stop_gradient(clean), perturbed
    return clean, perturbed
