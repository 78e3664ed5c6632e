"""SimCLR's NT-Xent: cross-entropy of finding an example's other view among all views of the batch."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.functions import covariance_square_root, unit
from influence_ssl_jax.losses.loss import Embeddings, Loss


@dataclasses.dataclass(frozen=True)
class SimCLR(Loss):
    """NT-Xent, `mean_i [log Σ_{k≠i} exp(s_ik / τ) − s_{i,pos(i)} / τ]` over the 2b views, `s` cosine similarity.

    Reference: arXiv 2002.05709, equation (1).

    Attributes:
        temperature: τ > 0.
    """

    temperature: float = 0.2
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a temperature that divides by zero or turns the loss round."""
        if not self.temperature > 0:
            raise ValueError(f"The temperature of NT-Xent must be positive, got {self.temperature}.")

    def outputs(self, embeddings: Embeddings) -> Float[Array, "views others"]:
        """Similarity logits [2b, 2b − 1] of every view with all others, the positive in column 0.

        The similarity of a view with itself is left out instead of set to −∞, so that outputs are finite.

        Raises:
            ValueError: The batch has one example: there is nothing to contrast with.
        """
        first, second = embeddings.pair()
        batch = first.shape[0]
        if batch < 2:
            raise ValueError(f"NT-Xent contrasts the examples of a batch: it needs at least 2, got {batch}.")
        units = unit(jnp.concatenate([first, second]))
        logits = units @ units.T / self.temperature
        # Row i reads columns i + b, i + b + 1, …, round the circle of 2b views: the positive first, i itself left out.
        steps = jnp.concatenate([jnp.arange(batch), jnp.arange(batch + 1, 2 * batch)])
        columns = (jnp.arange(2 * batch)[:, None] + batch + steps[None, :]) % (2 * batch)
        return jnp.take_along_axis(logits, columns, axis=1)

    def head(self, outputs: Float[Array, "views others"]) -> Float[Array, ""]:
        """Mean softmax cross-entropy with column 0."""
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - outputs[:, 0])

    def head_square_root(
        self, outputs: Float[Array, "views others"], noise: Float[Array, "views others"]
    ) -> Float[Array, "views others"]:
        """`S = (diag(√p) − p √pᵀ) / √2b` per view, `p` its softmax."""
        return covariance_square_root(outputs, noise) / outputs.shape[0] ** 0.5
