"""Define the interface of a loss: a convex head on outputs of the embeddings."""

import abc
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float, Int


class Embeddings(NamedTuple):
    """Embeddings of the views of a batch, and the labels.

    Attributes:
        online: Embeddings of the differentiated network, one slice for each view.
        target: Embeddings of the same views by the target network; None if the loss reads none.
        label: The class of each example; None if the loss reads none.
    """

    online: Float[Array, "views batch width"]
    target: Float[Array, "views batch target_width"] | None = None
    label: Int[Array, " batch"] | None = None

    def pair(self) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
        """Return the two online views.

        Raises:
            ValueError: If there are not exactly two views.
        """
        if self.online.shape[0] != 2:
            raise ValueError(
                f"This loss compares two views of an example, got embeddings of {self.online.shape[0]} "
                f"(shape {self.online.shape}); choose views that draw two."
            )
        return self.online[0], self.online[1]


class Loss(abc.ABC):
    """A loss `loss(z) = head(outputs(z))` whose head is convex.

    The Gauss–Newton matrix `J_yᵀ ∇²head J_y` is then positive semi-definite by construction.

    A loss is *separable* if its outputs have one slice for each example and its head is the mean over examples of one
    function of that slice. NT-Xent and Barlow Twins are not separable: they couple the examples of a batch. They have
    no loss of one example, only its contribution `J_bᵀ ∂loss/∂z_b` to the gradient.
    """

    views: ClassVar[int] = 2
    """The number of views of an example that the loss compares."""
    separable: ClassVar[bool]
    """Whether the outputs have a leading axis of examples over which the head averages."""
    compares_with_target: ClassVar[bool] = False
    """Whether the loss reads `Embeddings.target`."""

    @abc.abstractmethod
    def outputs(self, embeddings: Embeddings) -> Float[Array, "*outputs"]:
        """Compute the outputs `y(z)`; they may couple the examples of a batch."""

    @abc.abstractmethod
    def head(self, outputs: Float[Array, "*outputs"]) -> Float[Array, ""]:
        """Compute the loss, a convex function of the outputs."""

    @abc.abstractmethod
    def head_square_root(
        self, outputs: Float[Array, "*outputs"], noise: Float[Array, "*outputs"]
    ) -> Float[Array, "*outputs"]:
        """Multiply noise by a square root `S` of the head's Hessian.

        `S Sᵀ = ∇²head(outputs)`, so standard normal noise becomes a draw from `N(0, ∇²head)`. The product has a closed
        form and is linear in `noise`: the sampled Fisher never forms a Hessian in output space. If the loss is
        separable, `S` acts on the slice of each example separately.
        """

    def __call__(self, embeddings: Embeddings) -> Float[Array, ""]:
        """Compute the loss of a batch: `head(outputs(embeddings))`."""
        return self.head(self.outputs(embeddings))
