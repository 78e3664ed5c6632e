"""What a loss is: a convex head on outputs of the embeddings."""

import abc
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float, Int


class Embeddings(NamedTuple):
    """What a network made of the views of a batch.

    Attributes:
        online: Embeddings of the differentiated network, one slice per view.
        target: Embeddings of the target network of the same views, where the loss compares with one (BYOL).
        label: Classes, where the loss reads them (the supervised baseline).
    """

    online: Float[Array, "views batch width"]
    target: Float[Array, "views batch target_width"] | None = None
    label: Int[Array, " batch"] | None = None

    def pair(self) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
        """The two online views.

        Raises:
            ValueError: There are not exactly two.
        """
        if self.online.shape[0] != 2:
            raise ValueError(
                f"This loss compares two views of an example, got embeddings of {self.online.shape[0]} "
                f"(shape {self.online.shape}); choose a views recipe that draws two."
            )
        return self.online[0], self.online[1]


class Loss(abc.ABC):
    """`loss(z) = head(outputs(z))` with `head` convex, so `J_yᵀ ∇²head J_y` is positive semi-definite by construction.

    A loss is *separable* where its outputs have one slice per example and its head is the mean over examples of one
    function of that slice. NT-Xent and Barlow Twins are not: they couple the examples of a batch, have no per-example
    loss, and only a per-example gradient *contribution* `J_bᵀ ∂loss/∂z_b`.
    """

    views: ClassVar[int] = 2
    """How many views of an example the loss compares."""
    separable: ClassVar[bool]
    """Whether outputs have a leading example axis that the head averages over."""
    compares_with_target: ClassVar[bool] = False
    """Whether `Embeddings.target` is read."""

    @abc.abstractmethod
    def outputs(self, embeddings: Embeddings) -> Float[Array, "*outputs"]:
        """Outputs `y(z)` of the embeddings; may couple the examples of a batch."""

    @abc.abstractmethod
    def head(self, outputs: Float[Array, "*outputs"]) -> Float[Array, ""]:
        """Scalar loss, convex in the outputs."""

    @abc.abstractmethod
    def head_square_root(
        self, outputs: Float[Array, "*outputs"], noise: Float[Array, "*outputs"]
    ) -> Float[Array, "*outputs"]:
        """`S · noise` with `S Sᵀ = ∇²head(outputs)`: standard normal noise in, a draw from `N(0, ∇²head)` out.

        In closed form and linear in `noise`, so the sampled Fisher never forms a Hessian in output space. For a
        separable loss `S` acts on each example's slice alone.
        """

    def __call__(self, embeddings: Embeddings) -> Float[Array, ""]:
        """`head(outputs(embeddings))`, averaged over the batch."""
        return self.head(self.outputs(embeddings))
