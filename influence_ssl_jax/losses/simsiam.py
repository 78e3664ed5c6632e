"""Compute SimSiam's loss from predictions and projections of one network."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, crossed_residuals


@dataclasses.dataclass(frozen=True)
class SimSiam(Loss):
    """The loss `mean_b ½ Σ_v −cos(p_v, z_v')` of SimSiam, with `v' ≠ v`.

    `p` are predictions and `z` projections of the same network at the same parameters. Projections are constants to
    every derivative (the stop-gradient of the paper), so gradients and curvatures are those of BYOL, divided by 4, whose
    target network is a copy of the online network. It is computed as `¼ Σ_v ‖r_v‖² − 1`, with
    `r_v = p_v/‖p_v‖ − z_v'/‖z_v'‖`, which keeps its digits if both agree. It is defined for zero vectors too, with
    `0/‖0‖ = 0`.
    Reference: arXiv 2011.10566, equations (2) and (4).

    Examples:
        Each prediction is that of the other view's projection: the loss has its least value.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import Embeddings, SimSiam
        >>> views = jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> round(float(SimSiam()(Embeddings(views, target=views[::-1]))), 4)
        -1.0
    """

    separable: ClassVar[bool] = True
    compares_with_target: ClassVar[bool] = True
    target_is_online: ClassVar[bool] = True

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch crossings width"]:
        """Compute the residuals of both pairs of views, [batch, 2, width].

        Raises:
            ValueError: If there are no target embeddings, or their shape is not that of the online ones.
        """
        return crossed_residuals(embeddings, "SimSiam")

    def head(self, outputs: Float[Array, "batch crossings width"]) -> Float[Array, ""]:
        """Average a quarter of both squared norms over the batch; subtract 1."""
        return jnp.sum(outputs**2) / (4 * outputs.shape[0]) - 1

    def head_square_root(
        self, outputs: Float[Array, "batch crossings width"], noise: Float[Array, "batch crossings width"]
    ) -> Float[Array, "batch crossings width"]:
        """Return `√(1/2b) · noise`: the Hessian of the head is `(1/2b) I`."""
        return (0.5 / outputs.shape[0]) ** 0.5 * noise
