"""Barlow Twins: the cross-correlation matrix of two views should be the identity."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.functions import standardised
from influence_ssl_jax.losses.loss import Embeddings, Loss


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Loss):
    """`scale · [Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²]`, `C` the cross-correlation matrix of the two views over the batch.

    Each view is standardised by its *own* batch statistics, so the loss is invariant to an affine map of every feature
    of every view. A feature that is constant over the batch has correlation 0 with everything.
    Reference: arXiv 2103.03230, equations (1) and (2).

    Attributes:
        off_diagonal: λ, the weight of redundancy reduction.
        scale: Factor of the whole loss (0.1 in solo-learn, where it tames the learning rate).
    """

    off_diagonal: float = 0.0051
    scale: float = 0.1
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse weights with which the head is not convex."""
        if not (self.off_diagonal >= 0 and self.scale > 0):
            raise ValueError(
                "Barlow Twins needs off_diagonal >= 0 and scale > 0 to be a convex function of the correlations, "
                f"got off_diagonal={self.off_diagonal}, scale={self.scale}."
            )

    def outputs(self, embeddings: Embeddings) -> Float[Array, "width width"]:
        """Cross-correlation matrix `C` [width, width]; rows: features of the first view, columns: of the second.

        Raises:
            ValueError: The batch has one example: nothing varies, so nothing correlates.
        """
        first, second = embeddings.pair()
        if first.shape[0] < 2:
            raise ValueError(
                f"Barlow Twins correlates over a batch: it needs at least 2 examples, got {first.shape[0]}."
            )
        return standardised(first).T @ standardised(second)

    def head(self, outputs: Float[Array, "width width"]) -> Float[Array, ""]:
        """Squared distance of the diagonal from 1 and, weighted by λ, of the rest from 0."""
        diagonal = jnp.diagonal(outputs)
        rest = jnp.sum(outputs**2) - jnp.sum(diagonal**2)
        return self.scale * (jnp.sum((1 - diagonal) ** 2) + self.off_diagonal * rest)

    def head_square_root(
        self, outputs: Float[Array, "width width"], noise: Float[Array, "width width"]
    ) -> Float[Array, "width width"]:
        """`√(2·scale) · noise` on the diagonal, `√(2·scale·λ) · noise` off it."""
        on_diagonal = jnp.eye(outputs.shape[0], dtype=bool)
        return (2 * self.scale) ** 0.5 * jnp.where(on_diagonal, noise, self.off_diagonal**0.5 * noise)
