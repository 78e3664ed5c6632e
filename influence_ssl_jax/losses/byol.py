"""BYOL: the online prediction of one view meets the target projection of the other."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.functions import unit
from influence_ssl_jax.losses.loss import Embeddings, Loss


@dataclasses.dataclass(frozen=True)
class BYOL(Loss):
    """`mean_b Σ_v ‖r_bv‖²`, `r_bv = p_v/‖p_v‖ − sg(t_v'/‖t_v'‖)`, `v' ≠ v`: `2 − 2 cos` summed over both crossings.

    `p` are online predictions, `t` projections of the target network, constants to the derivative.
    Reference: arXiv 2006.07733, equation (2), symmetrised.
    """

    separable: ClassVar[bool] = True
    compares_with_target: ClassVar[bool] = True

    def outputs(self, embeddings: Embeddings) -> Float[Array, "batch crossings width"]:
        """Residuals of both crossings, [batch, 2, width].

        Raises:
            ValueError: There are no target embeddings, or they differ in shape from the online ones.
        """
        online = jnp.stack(embeddings.pair(), axis=1)
        if embeddings.target is None or embeddings.target.shape != embeddings.online.shape:
            got = None if embeddings.target is None else embeddings.target.shape
            raise ValueError(
                f"BYOL compares online predictions of shape {embeddings.online.shape} with target projections of the "
                f"same shape, got {got}; give the objective a target network of the predictor's output width."
            )
        other_view = jnp.stack([embeddings.target[1], embeddings.target[0]], axis=1)
        return unit(online) - jax.lax.stop_gradient(unit(other_view))

    def head(self, outputs: Float[Array, "batch crossings width"]) -> Float[Array, ""]:
        """Mean over the batch of the squared norms of both residuals."""
        return jnp.sum(outputs**2) / outputs.shape[0]

    def head_square_root(
        self, outputs: Float[Array, "batch crossings width"], noise: Float[Array, "batch crossings width"]
    ) -> Float[Array, "batch crossings width"]:
        """`√(2/b) · noise`: the Hessian of the head is `(2/b) I`."""
        return (2 / outputs.shape[0]) ** 0.5 * noise
