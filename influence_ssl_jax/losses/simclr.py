"""Compute SimCLR's NT-Xent.

It is the cross-entropy of finding the other view of an example in the batch.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, covariance_square_root, unit


@dataclasses.dataclass(frozen=True)
class SimCLR(Loss):
    """NT-Xent, `mean_i [log Σ_{k≠i} exp(s_ik / τ) − s_{i,pos(i)} / τ]` over the 2b views.

    `s` is the cosine similarity, and `pos(i)` is the other view of the same example.
    Reference: arXiv 2002.05709, equation (1).

    Attributes:
        temperature: τ > 0.

    Examples:
        If all embeddings are equal, each of the 2b − 1 = 3 other views is as likely as the others: the loss is log 3.

        >>> import jax, jax.numpy as jnp, math
        >>> from influence_ssl_jax.losses import Embeddings, SimCLR
        >>> loss = float(jax.jit(SimCLR(temperature=0.2))(Embeddings(jnp.ones((2, 2, 3)))))
        >>> abs(loss - math.log(3)) < 1e-5
        True
    """

    temperature: float = 0.2
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a temperature that is not positive."""
        if not self.temperature > 0:
            raise ValueError(f"The temperature of NT-Xent must be positive, got {self.temperature}.")

    def outputs(self, embeddings: Embeddings) -> Float[Array, "views others"]:
        """Compute the logits `[2b, 2b − 1]` of every view with all others.

        The positive is in column 0. The similarity of a view with itself is left out instead of being set to −∞, so
        outputs are finite.

        Raises:
            ValueError: If the batch has one example: there is nothing to contrast it with.
        """
        first, second = embeddings.pair()
        batch = first.shape[0]
        if batch < 2:
            raise ValueError(f"NT-Xent contrasts the examples of a batch: it needs at least 2, got {batch}.")
        units = unit(jnp.concatenate([first, second]))
        logits = units @ units.T / self.temperature
        # Row i reads the columns i + b, i + b + 1, … modulo 2b: the positive first, and without i itself.
        steps = jnp.concatenate([jnp.arange(batch), jnp.arange(batch + 1, 2 * batch)])
        columns = (jnp.arange(2 * batch)[:, None] + batch + steps[None, :]) % (2 * batch)
        return jnp.take_along_axis(logits, columns, axis=1)

    def head(self, outputs: Float[Array, "views others"]) -> Float[Array, ""]:
        """Average the softmax cross-entropy with column 0 over the views."""
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - outputs[:, 0])

    def head_square_root(
        self, outputs: Float[Array, "views others"], noise: Float[Array, "views others"]
    ) -> Float[Array, "views others"]:
        """Multiply noise by `S = (diag(√p) − p √pᵀ) / √2b` for each view.

        `p` is the softmax of the view's logits.
        """
        return covariance_square_root(outputs, noise) / outputs.shape[0] ** 0.5
