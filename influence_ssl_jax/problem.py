"""Which matrix is inverted: an objective, its parameters and the data set that it is averaged over."""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.augment.transform import Views
from influence_ssl_jax.losses.loss import Embeddings, Loss
from influence_ssl_jax.nets.network import EmbeddingFunction
from influence_ssl_jax.types import Batch, Frozen, Params

Curvature: TypeAlias = Literal["ggn", "fisher", "empirical_fisher", "hessian"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """`loss(outputs(network(views(batch))))`: what a model minimises, or what a score measures.

    Attributes:
        network: The differentiated network.
        views: The random views of an example; their draw is fixed by the example's key.
        loss: The head ∘ outputs that compares the views.
        target: The network that makes `Embeddings.target` from `frozen["target"]`, for losses that compare with one.
    """

    network: EmbeddingFunction
    views: Views
    loss: Loss
    target: EmbeddingFunction | None = None

    def __post_init__(self) -> None:
        """Refuse a loss that compares with a target network where none is given."""
        if self.loss.compares_with_target and self.target is None:
            raise ValueError(
                f"{type(self.loss).__name__} compares with a target network, got target=None; "
                "pass the network that embeds with frozen['target']."
            )

    def images(self, batch: Batch, dtype: jax.typing.DTypeLike) -> Float[Array, "views batch height width channels"]:
        """Draw the views of every example, pixels in [0, 1], and cast them to `dtype`.

        They are computed in the widest of float32, the pixels' type and `dtype`: parameters in 16 bits see the views that
        parameters in float32 see, and those in float64 see them without float32's rounding.
        """
        wide = jnp.promote_types(jnp.promote_types(batch.image.dtype, jnp.float32), dtype)
        pixels = batch.image.astype(wide)
        if jnp.issubdtype(batch.image.dtype, jnp.integer):
            pixels = pixels / 255
        return jax.vmap(self.views, out_axes=1)(batch.key, pixels).astype(dtype)

    def embed(
        self, params: Params, frozen: Frozen, images: Float[Array, "views batch height width channels"]
    ) -> Float[Array, "views batch embedding"]:
        """Embeddings of all views, as one batch through the network."""
        views, batch = images.shape[:2]
        flat = self.network(params, frozen, images.reshape(views * batch, *images.shape[2:]))
        return flat.reshape(views, batch, -1)

    def complete(self, online: Float[Array, "views batch embedding"], frozen: Frozen, batch: Batch) -> Embeddings:
        """The online embeddings with everything else that the loss reads: target embeddings and labels."""
        target = None
        if self.loss.compares_with_target and self.target is not None:
            images = self.images(batch, online.dtype)
            views, size = images.shape[:2]
            held = frozen["target"]
            rest = {name: value for name, value in held.items() if name != "params"}
            flat = self.target(held["params"], rest, images.reshape(views * size, *images.shape[2:]))
            target = jax.lax.stop_gradient(flat.reshape(views, size, -1))
        return Embeddings(online, target, batch.label)

    def outputs(self, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "*outputs"]:
        """The outputs `y` that the convex head reads."""
        images = self.images(batch, jax.tree.leaves(params)[0].dtype)
        return self.loss.outputs(self.complete(self.embed(params, frozen, images), frozen, batch))

    def __call__(self, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, ""]:
        """The loss of one batch."""
        return self.loss.head(self.outputs(params, frozen, batch))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """The matrix `C` = mean over batches of the curvature of `objective` at `params`.

    Everything random is fixed by the keys inside `batches`, so `C` is one fixed symmetric matrix.

    Attributes:
        params: Where the curvature is taken.
        frozen: Running statistics, and the target network where there is one.
        batches: The resident curvature set: a `Batch` whose leaves have leading axes [num_batches, batch].
        objective: What is differentiated.
        curvature: `ggn` J_yᵀ∇²head J_y · `fisher` its Monte-Carlo estimate from draws v ~ N(0, ∇²head) ·
            `empirical_fisher` second moment of per-example gradient contributions · `hessian` the exact second
            derivative (indefinite away from a minimum).
        samples: Draws per batch of the sampled `fisher`.
        padding: How many of the last batches are padding (index −1 throughout), which fills up the devices of a mesh.
    """

    params: Params
    frozen: Frozen
    batches: Batch
    objective: Objective = dataclasses.field(metadata={"static": True})
    curvature: Curvature = dataclasses.field(default="ggn", metadata={"static": True})
    samples: int = dataclasses.field(default=1, metadata={"static": True})
    padding: int = dataclasses.field(default=0, metadata={"static": True})
