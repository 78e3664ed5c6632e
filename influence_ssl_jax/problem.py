"""Define the matrix to invert: an objective, its parameters, and its data."""

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
    """The function `loss(outputs(network(views(batch))))`: a training loss or a measurement.

    Attributes:
        network: The differentiated network.
        views: The random views of an example; the example's key determines the draw.
        loss: The loss that compares the views: a head on outputs.
        target: The network that computes `Embeddings.target`: from `frozen["target"]`, or from `params` and `frozen` if
            `loss.target_is_online`; None if the loss reads none.

    Examples:
        The image 3 and its mirror image 4 are embedded as themselves, (3, 4) and (4, 3): the loss is 1² + 1².

        >>> import jax, jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.augment.crop import HorizontalFlip
        >>> from influence_ssl_jax.augment.transform import AgainstClean
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> from influence_ssl_jax.types import Batch
        >>> objective = isj.Objective(isj.Network(Linear(2)), AgainstClean(HorizontalFlip()), isj.SquaredEuclid())
        >>> batch = Batch(jnp.asarray([[[[3.0], [4.0]]]]), jax.random.split(jax.random.key(0), 1), jnp.asarray([0]))
        >>> round(float(objective({"dense": {"kernel": jnp.eye(2)}}, {}, batch)), 4)
        2.0
    """

    network: EmbeddingFunction
    views: Views
    loss: Loss
    target: EmbeddingFunction | None = None

    def __post_init__(self) -> None:
        """Refuse a loss that compares with an absent target network."""
        if self.loss.compares_with_target and self.target is None:
            raise ValueError(
                f"{type(self.loss).__name__} compares with a target network, got target=None; "
                "pass the network that embeds with frozen['target'], or with the online parameters if the loss has no "
                "others."
            )

    def images(self, batch: Batch, dtype: jax.typing.DTypeLike) -> Float[Array, "views batch height width channels"]:
        """Draw every example's views, with pixels in [0, 1], as `dtype`.

        Views are computed in the widest of float32, the type of the pixels and `dtype`. So parameters of 16 bits see
        the views that parameters in float32 see, and parameters in float64 see them without the rounding of float32.
        """
        wide = jnp.promote_types(jnp.promote_types(batch.image.dtype, jnp.float32), dtype)
        pixels = batch.image.astype(wide)
        if jnp.issubdtype(batch.image.dtype, jnp.integer):
            pixels = pixels / 255
        return jax.vmap(self.views, out_axes=1)(batch.key, pixels).astype(dtype)

    def embed(
        self, params: Params, frozen: Frozen, images: Float[Array, "views batch height width channels"]
    ) -> Float[Array, "views batch embedding"]:
        """Embed all views as one batch."""
        views, batch = images.shape[:2]
        flat = self.network(params, frozen, images.reshape(views * batch, *images.shape[2:]))
        return flat.reshape(views, batch, -1)

    def complete(
        self, online: Float[Array, "views batch embedding"], params: Params, frozen: Frozen, batch: Batch
    ) -> Embeddings:
        """Add target embeddings and labels to the online embeddings.

        Target embeddings are constants to every derivative, also if they are computed from `params`.
        """
        target = None
        if self.loss.compares_with_target and self.target is not None:
            images = self.images(batch, online.dtype)
            views, size = images.shape[:2]
            own = {"params": params, **frozen} if self.loss.target_is_online else frozen["target"]
            rest = {name: value for name, value in own.items() if name != "params"}
            flat = self.target(own["params"], rest, images.reshape(views * size, *images.shape[2:]))
            target = jax.lax.stop_gradient(flat.reshape(views, size, -1))
        return Embeddings(online, target, batch.label)

    def outputs(self, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, "*outputs"]:
        """Compute the outputs `y` that the convex head reads."""
        images = self.images(batch, jax.tree.leaves(params)[0].dtype)
        return self.loss.outputs(self.complete(self.embed(params, frozen, images), params, frozen, batch))

    def __call__(self, params: Params, frozen: Frozen, batch: Batch) -> Float[Array, ""]:
        """Compute the loss of one batch."""
        return self.loss.head(self.outputs(params, frozen, batch))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """The matrix `C`: an objective's curvature at `params`, averaged over batches.

    The keys in `batches` determine all random draws, so `C` is one fixed symmetric matrix.

    Attributes:
        params: Parameters at which the curvature is taken.
        frozen: Running statistics, and the target network if there is one.
        batches: The resident curvature set: a `Batch` whose leaves have leading axes [num_batches, batch].
        objective: The differentiated function.
        curvature: `ggn` J_yᵀ∇²head J_y · `fisher` its Monte-Carlo estimate from draws v ~ N(0, ∇²head) ·
            `empirical_fisher` second moment of per-example gradient contributions · `hessian` the exact second
            derivative (indefinite away from a minimum).
        samples: Number of draws for each batch of the sampled `fisher`.
        padding: Number of last batches that are padding (index −1 throughout), which fill the devices of a mesh.

    Examples:
        The curvature set is one batch of one example: its leaves have the leading axes [1, 1].

        >>> import jax, jax.numpy as jnp
        >>> import influence_ssl_jax as isj
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> from influence_ssl_jax.types import Batch
        >>> images, keys = jnp.ones((1, 1, 1, 2, 1)), jax.random.split(jax.random.key(0), (1, 1))
        >>> objective = isj.Objective(isj.Network(Linear(2)), isj.GaussianNoise(), isj.SquaredEuclid())
        >>> problem = isj.Problem(
        ...     {"dense": {"kernel": jnp.eye(2)}}, {}, Batch(images, keys, jnp.zeros((1, 1), int)), objective
        ... )
        >>> problem.curvature, problem.batches.image.shape[:2]
        ('ggn', (1, 1))
    """

    params: Params
    frozen: Frozen
    batches: Batch
    objective: Objective = dataclasses.field(metadata={"static": True})
    curvature: Curvature = dataclasses.field(default="ggn", metadata={"static": True})
    samples: int = dataclasses.field(default=1, metadata={"static": True})
    padding: int = dataclasses.field(default=0, metadata={"static": True})
