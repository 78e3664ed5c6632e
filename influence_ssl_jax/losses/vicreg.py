"""Compute VICReg's loss: invariance, variance and covariance."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.configuration import POSITIVE, check_numbers
from influence_ssl_jax.losses.loss import Embeddings, Loss, centre


@dataclasses.dataclass(frozen=True)
class VICReg(Loss):
    """The loss `λ s(z, z') + μ [v(z) + v(z')] + ν [c(z) + c(z')]` of VICReg.

    Over a batch of b embeddings of width d, with the unbiased covariance matrix `C` of a view over the batch:

    - invariance `s = Σ_b ‖z_b − z'_b‖² / (b d)`;
    - variance `v = Σ_j max(0, γ − S_j) / d`, with the deviations `S_j = √(C_jj + ε)`;
    - covariance `c = Σ_{i≠j} C_ij² / d`.

    The head is a convex function of differences, deviations and covariances: squares and a hinge. On either side of
    `S_j = γ` the hinge is linear, so its Hessian is zero. The variance term therefore adds nothing to a `ggn` or
    `fisher`. It counts in gradients, so in an `empirical_fisher`, and in a `hessian`, where it is concave below γ.
    Reference: arXiv 2105.04906, equations (1) to (6), with the invariance averaged over features too, as solo-learn does.

    Attributes:
        invariance: λ.
        variance: μ.
        covariance: ν.
        margin: γ, the deviation that each feature should have.
        epsilon: ε.

    Examples:
        Two equal views with uncorrelated features of variance 4/3: no term is above 0.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import Embeddings, VICReg
        >>> view = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(VICReg()(Embeddings(jnp.stack([view, view]))))
        0.0
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    margin: float = 1.0
    epsilon: float = 1e-4
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse weights for which the head is not convex."""
        weights = dict.fromkeys(("invariance", "variance", "covariance"), (0, math.inf))
        check_numbers(self, **weights, margin=POSITIVE, epsilon=POSITIVE)

    def outputs(self, embeddings: Embeddings) -> Float[Array, "rows width"]:
        """Compute differences, deviations and covariances, [batch + 2·width, width].

        The first rows are `z − z'`. Then follows, for each view, its covariance matrix with the deviations `S` in place
        of the variances on its diagonal.

        Raises:
            ValueError: If the batch has one example: it has no variance.
        """
        first, second = embeddings.pair()
        if first.shape[0] < 2:
            raise ValueError(
                f"VICReg takes variances over a batch: it needs at least 2 examples, got {first.shape[0]}."
            )
        return jnp.concatenate([first - second, self._moments(first), self._moments(second)])

    def head(self, outputs: Float[Array, "rows width"]) -> Float[Array, ""]:
        """Weigh squared differences, hinges of deviations and squared covariances."""
        width = outputs.shape[1]
        differences, moments = outputs[: -2 * width], outputs[-2 * width :].reshape(2, width, width)
        deviations = jnp.diagonal(moments, axis1=1, axis2=2)
        hinges = jnp.sum(jnp.maximum(0, self.margin - deviations))
        covariances = jnp.sum(moments**2) - jnp.sum(deviations**2)
        invariance = self.invariance * jnp.mean(differences**2)
        return invariance + (self.variance * hinges + self.covariance * covariances) / width

    def head_square_root(
        self, outputs: Float[Array, "rows width"], noise: Float[Array, "rows width"]
    ) -> Float[Array, "rows width"]:
        """Multiply differences by `√(2λ/bd)` and covariances by `√(2ν/d)`.

        Deviations are multiplied by 0, because hinges are linear.
        """
        width = outputs.shape[1]
        batch = outputs.shape[0] - 2 * width
        off_diagonal = jnp.tile(~jnp.eye(width, dtype=bool), (2, 1))
        differences = (2 * self.invariance / (batch * width)) ** 0.5 * noise[:batch]
        moments = (2 * self.covariance / width) ** 0.5 * jnp.where(off_diagonal, noise[batch:], 0.0)
        return jnp.concatenate([differences, moments])

    def _moments(self, view: Float[Array, "batch width"]) -> Float[Array, "width width"]:
        """Return a view's covariances, and its deviations on the diagonal."""
        centred = centre(view)
        covariances = centred.T @ centred / (view.shape[0] - 1)
        deviations = jnp.sqrt(jnp.diagonal(covariances) + self.epsilon)
        return jnp.where(jnp.eye(view.shape[1], dtype=bool), deviations[:, None], covariances)
