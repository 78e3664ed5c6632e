"""Compute the loss of Barlow Twins from the cross-correlation of two views."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.losses.loss import Embeddings, Loss, standardise


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Loss):
    """The loss `scale · [Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²]` of Barlow Twins.

    `C` is the cross-correlation matrix of the two views over the batch. Each view is standardised by its *own*
    statistics of the batch, so the loss does not change if a feature of a view is shifted, or multiplied by a positive
    number. A feature that is constant over the batch has correlation 0 with every other one.
    Reference: arXiv 2103.03230, equations (1) and (2).

    Attributes:
        off_diagonal: λ, the weight of redundancy reduction.
        scale: Factor of the whole loss (0.1 in solo-learn, for use with its learning rate).

    Examples:
        Two equal views with uncorrelated features have the identity as their cross-correlation: the loss is 0.

        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses import BarlowTwins, Embeddings
        >>> view = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> abs(float(BarlowTwins()(Embeddings(jnp.stack([view, view]))))) < 1e-12
        True
    """

    off_diagonal: float = 0.0051
    scale: float = 0.1
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse weights for which the head is not convex."""
        if not (self.off_diagonal >= 0 and self.scale > 0):
            raise ValueError(
                "Barlow Twins needs off_diagonal >= 0 and scale > 0 to be a convex function of the correlations, "
                f"got off_diagonal={self.off_diagonal}, scale={self.scale}."
            )

    def outputs(self, embeddings: Embeddings) -> Float[Array, "width width"]:
        """Compute the cross-correlation matrix `C`, [width, width].

        Rows are features of the first view, columns are features of the second.

        Raises:
            ValueError: If the batch has one example: nothing varies, so nothing correlates.
        """
        first, second = embeddings.pair()
        if first.shape[0] < 2:
            raise ValueError(
                f"Barlow Twins correlates over a batch: it needs at least 2 examples, got {first.shape[0]}."
            )
        return standardise(first).T @ standardise(second)

    def head(self, outputs: Float[Array, "width width"]) -> Float[Array, ""]:
        """Compute the squared distance of `C` from the identity.

        Entries off the diagonal are weighted by λ.
        """
        diagonal = jnp.diagonal(outputs)
        rest = jnp.sum(outputs**2) - jnp.sum(diagonal**2)
        return self.scale * (jnp.sum((1 - diagonal) ** 2) + self.off_diagonal * rest)

    def head_square_root(
        self, outputs: Float[Array, "width width"], noise: Float[Array, "width width"]
    ) -> Float[Array, "width width"]:
        """Multiply the diagonal by `√(2·scale)` and the other entries by `√(2·scale·λ)`."""
        on_diagonal = jnp.eye(outputs.shape[0], dtype=bool)
        return (2 * self.scale) ** 0.5 * jnp.where(on_diagonal, noise, self.off_diagonal**0.5 * noise)
