"""Compute the loss of the supervised baseline: softmax cross-entropy with the labels."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, covariance_square_root


@dataclasses.dataclass(frozen=True)
class Supervised(Loss):
    """Softmax cross-entropy, `mean_b log Σ_c exp(z_bc − z_b,label(b))`.

    The outputs are the margins of all classes over the labelled one. They are linear in the logits, so the head needs
    no labels and the Gauss–Newton matrix is the usual one of softmax cross-entropy.

    Examples:
        Equal logits of two classes give the loss log 2.

        >>> import jax.numpy as jnp, math
        >>> from influence_ssl_jax.losses import Embeddings, Supervised
        >>> logits = jnp.zeros((1, 1, 2))
        >>> loss = float(Supervised()(Embeddings(logits, label=jnp.asarray([1]))))
        >>> abs(loss - math.log(2)) < 1e-6
        True
    """

    views: ClassVar[int] = 1
    separable: ClassVar[bool] = True

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch classes"]:
        """Compute the margins `z_c − z_label`, [batch, classes].

        A label that is not a class, such as that of padding, gives NaN.

        Raises:
            ValueError: If labels are missing, or there is more than one view.
        """
        if embeddings.online.shape[0] != 1:
            raise ValueError(
                f"The supervised loss reads one view, got {embeddings.online.shape[0]}; choose views that draw one."
            )
        if embeddings.label is None:
            raise ValueError("The supervised loss reads labels, got none; use a data source that has them.")
        logits, label = embeddings.online[0], embeddings.label
        known = (label >= 0) & (label < logits.shape[1])
        own = jnp.take_along_axis(logits, jnp.where(known, label, 0)[:, None], axis=1)
        return logits - jnp.where(known[:, None], own, jnp.nan)

    def head(self, outputs: Float[Array, "batch classes"]) -> Float[Array, ""]:
        """Average the log-sum-exp of the margins over the batch."""
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1))

    def head_square_root(
        self, outputs: Float[Array, "batch classes"], noise: Float[Array, "batch classes"]
    ) -> Float[Array, "batch classes"]:
        """Multiply noise by `S = (diag(√p) − p √pᵀ) / √b` for each example.

        `p` is the softmax of the example's margins.
        """
        return covariance_square_root(outputs, noise) / outputs.shape[0] ** 0.5
