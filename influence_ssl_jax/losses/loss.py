"""Define the interface of a loss, and functions that several losses share."""

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Embeddings(NamedTuple):
    """Embeddings of the views of a batch, and the labels.

    Attributes:
        online: Embeddings of the differentiated network, one slice for each view.
        target: Embeddings of the same views by the target network, which are constants to derivatives; None if the loss
            reads none.
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
    function of that slice. NT-Xent, Barlow Twins and VICReg are not separable: they couple the examples of a batch.
    They have no loss of one example, only its contribution `J_bᵀ ∂loss/∂z_b` to the gradient.
    """

    views: ClassVar[int] = 2
    """The number of views of an example that the loss compares."""
    separable: ClassVar[bool]
    """Whether the outputs have a leading axis of examples over which the head averages."""
    compares_with_target: ClassVar[bool] = False
    """Whether the loss reads `Embeddings.target`."""
    target_is_online: ClassVar[bool] = False
    """Whether the target network is the online network, always at the same parameters.

    If it is not, the target network has parameters of its own in `frozen["target"]`.
    """

    @abc.abstractmethod
    def outputs(self, embeddings: Embeddings) -> Float[Array, "*outputs"]:
        """Compute the outputs `y(z)`; they may couple the examples of a batch.

        They are one array. Terms of different kinds are joined in it, and the head takes them apart by its shape alone.
        """

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


def unit(vectors: Float[Array, "*rows width"], axis: int = -1) -> Float[Array, "*rows width"]:
    """Divide vectors by their norm along `axis`; the zero vector stays zero.

    The derivative at the zero vector is zero. The largest entry is divided out first and is a constant to the
    derivative, because `v / ‖v‖` does not depend on the scale of `v`. So neither `‖v‖²` nor the inverse powers in its
    derivatives overflow or underflow.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses.loss import unit
        >>> unit(jnp.asarray([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=axis, keepdims=True))
    # NaN and infinity are not below `tiny`: they pass on as NaN, and only zeros are replaced.
    zero = largest < jnp.finfo(vectors.dtype).tiny
    scaled = jnp.where(zero, 1.0, vectors) / jnp.where(zero, 1.0, largest)
    return jnp.where(zero, 0.0, scaled / jnp.sqrt(jnp.sum(scaled**2, axis=axis, keepdims=True)))


def is_zero(vectors: Float[Array, "*rows width"]) -> Bool[Array, "*rows"]:
    """Mark the vectors that are zero, and so have no direction.

    A vector counts as zero if its largest entry is below the smallest normal number of its type.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses.loss import is_zero
        >>> is_zero(jnp.asarray([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [False, True]
    """
    return jnp.max(jnp.abs(vectors), axis=-1) < jnp.finfo(vectors.dtype).tiny


def centre(embeddings: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Subtract the mean over the batch from each column.

    The first row is subtracted before the mean: in exact arithmetic this changes nothing, and in floating point it
    makes constant columns exactly zero and keeps the digits of columns far from zero.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses.loss import centre
        >>> centre(jnp.asarray([[1.0], [3.0]])).tolist()
        [[-1.0], [1.0]]
    """
    shifted = embeddings - jax.lax.stop_gradient(embeddings[:1])
    return shifted - jnp.mean(shifted, axis=0, keepdims=True)


def standardise(embeddings: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Centre each column and divide it by its Euclidean norm.

    The product `AᵀB` of two such matrices is a correlation matrix. A constant column becomes zero.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.losses.loss import standardise
        >>> standardise(jnp.asarray([[1.0, 7.0], [3.0, 7.0]])).round(3).tolist()
        [[-0.707, 0.0], [0.707, 0.0]]
    """
    return unit(centre(embeddings), axis=0)


def crossed_residuals(embeddings: Embeddings, loss: str) -> Float[Array, "batch crossings width"]:
    """Compute `p_v/‖p_v‖ − t_v'/‖t_v'‖` of both crossed pairs of views.

    The result is [batch, 2, width]. `p` are online predictions and `t` target projections, which are not
    differentiated; `v' ≠ v`.

    Args:
        embeddings: The embeddings of two views.
        loss: Name of the loss, for the error.

    Raises:
        ValueError: If there are no target embeddings, or their shape is not that of the online ones.
    """
    online = jnp.stack(embeddings.pair(), axis=1)
    if embeddings.target is None or embeddings.target.shape != embeddings.online.shape:
        got = None if embeddings.target is None else embeddings.target.shape
        raise ValueError(
            f"{loss} compares online predictions of shape {embeddings.online.shape} with target projections of the "
            f"same shape, got {got}; give the objective a target network of the predictor's output width."
        )
    other_view = jnp.stack([embeddings.target[1], embeddings.target[0]], axis=1)
    return unit(online) - jax.lax.stop_gradient(unit(other_view))


def covariance_square_root(logits: Float[Array, "rows classes"], noise: Float[Array, "rows classes"]) -> Array:
    """Multiply each row of noise by its softmax covariance's square root.

    `S = diag(√p) − p √pᵀ`, so that `S Sᵀ = diag(p) − p pᵀ = ∇² log Σ exp(logits)`, where `p` is the softmax of a row.
    """
    p = jax.nn.softmax(logits, axis=1)
    drawn = jnp.sqrt(p) * noise
    return drawn - p * jnp.sum(drawn, axis=1, keepdims=True)
