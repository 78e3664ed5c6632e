"""Compute BYOL's loss from online predictions and target projections."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, crossed_residuals


@dataclasses.dataclass(frozen=True)
class BYOL(Loss):
    """The loss `mean_b Σ_v ‖r_bv‖²` of BYOL, with `r_bv = p_v/‖p_v‖ − t_v'/‖t_v'‖` and `v' ≠ v`.

    `p` are online predictions; `t` are projections of the target network, which are not differentiated. The loss is `2
    − 2 cos(p_v, t_v')`, summed over both pairs of views.
    Reference: arXiv 2006.07733, equation (2), symmetrised.

    Examples:
        Each prediction is perpendicular to the target of the other view: each of the two pairs adds `2 − 2·0`.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import BYOL, Embeddings
        >>> views = jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> round(float(BYOL()(Embeddings(views, target=views))), 4)
        4.0
    """

    separable: ClassVar[bool] = True
    compares_with_target: ClassVar[bool] = True

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch crossings width"]:
        """Compute the residuals of both pairs of views, [batch, 2, width].

        Raises:
            ValueError: If there are no target embeddings, or their shape is not that of the online ones.
        """
        return crossed_residuals(embeddings, "BYOL")

    def head(self, outputs: Float[Array, "batch crossings width"]) -> Float[Array, ""]:
        """Average over the batch the sum of both squared norms."""
        return jnp.sum(outputs**2) / outputs.shape[0]

    def head_square_root(
        self, outputs: Float[Array, "batch crossings width"], noise: Float[Array, "batch crossings width"]
    ) -> Float[Array, "batch crossings width"]:
        """Return `√(2/b) · noise`: the Hessian of the head is `(2/b) I`."""
        return (2 / outputs.shape[0]) ** 0.5 * noise
