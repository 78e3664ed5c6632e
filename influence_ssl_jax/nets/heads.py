"""Define projector, predictor and classifier heads, and networks with heads."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from influence_ssl_jax.nets.resnet import batch_norm


class Projector(nn.Module):
    """A multilayer perceptron: (Dense–BatchNorm–ReLU) × `hidden_layers`, then Dense.

    A self-supervised loss compares its outputs. One hidden layer is used by SimCLR (arXiv 2002.05709) and BYOL (arXiv
    2006.07733), two by Barlow Twins (arXiv 2103.03230).

    Attributes:
        hidden: Width of the hidden layers.
        output: Width of the output.
        hidden_layers: Number of hidden layers.
        normalisation: Normalisation of the hidden layers; the SimCLR projector of solo-learn has none.
        dtype: Type to compute in (`None`: that of inputs and parameters); parameters are float32.
        hidden_bias: Whether hidden layers have a bias; those in the checkpoints of Barlow Twins have none.
        output_bias: Whether the last layer has a bias; that of VICReg has none.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.heads import Projector
        >>> head = Projector(hidden=3, output=2, normalisation="none")
        >>> variables = jax.eval_shape(lambda x: head.init(jax.random.key(0), x, False), jnp.zeros((1, 4)))
        >>> {name: layer["kernel"].shape for name, layer in variables["params"].items()}
        {'dense0': (4, 3), 'output': (3, 2)}
    """

    hidden: int
    output: int
    hidden_layers: int = 1
    normalisation: Literal["batch", "none"] = "batch"
    dtype: jax.typing.DTypeLike | None = None
    hidden_bias: bool = True
    output_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch output"]:
        """Project representations.

        If `train` is true, BatchNorm uses the statistics of the batch and updates `batch_stats`.
        """
        for layer in range(self.hidden_layers):
            x = nn.Dense(self.hidden, self.hidden_bias, self.dtype, name=f"dense{layer}")(x)
            if self.normalisation == "batch":
                x = batch_norm(train, self.dtype, f"bn{layer}")(x)
            x = nn.relu(x)
        x = nn.Dense(self.output, self.output_bias, self.dtype, name="output")(x)
        # A loss subtracts nearly equal embeddings, which needs at least float32.
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class NormalisedProjector(nn.Module):
    """SimSiam's projector (arXiv 2011.10566): a projector with normalised outputs.

    BatchNorm follows each layer; that of the output has no scale and no shift, and no layer has a bias.

    Attributes:
        hidden: Width of the hidden layers.
        output: Width of the output.
        hidden_layers: Number of hidden layers.
        dtype: Type to compute in (`None`: that of inputs and parameters); parameters are float32.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.heads import NormalisedProjector
        >>> head = NormalisedProjector(hidden=3, output=2, hidden_layers=1)
        >>> variables = jax.eval_shape(lambda x: head.init(jax.random.key(0), x, False), jnp.zeros((1, 4)))
        >>> sorted(variables["params"]["layers"]), sorted(variables["batch_stats"])
        (['bn0', 'dense0', 'output'], ['bn', 'layers'])
    """

    hidden: int
    output: int
    hidden_layers: int = 2
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch output"]:
        """Project representations.

        If `train` is true, BatchNorm uses the statistics of the batch and updates `batch_stats`.
        """
        layers = Projector(
            self.hidden, self.output, self.hidden_layers, "batch", self.dtype, False, False, name="layers"
        )
        # The layers return at least float32, and so does this BatchNorm.
        return batch_norm(train, None, "bn", affine=False)(layers(x, train))


class Predictor(nn.Module):
    """A predictor: a projector with one hidden layer.

    It maps projections to projections, for BYOL (arXiv 2006.07733) and SimSiam (arXiv 2011.10566).

    Attributes:
        hidden: Width of the hidden layer.
        dtype: Type to compute in (`None`: that of inputs and parameters); parameters are float32.
        hidden_bias: Whether the hidden layer has a bias; that of SimSiam has none in torch.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.heads import Predictor
        >>> head, projections = Predictor(hidden=3), jnp.zeros((5, 2))
        >>> jax.eval_shape(lambda x: head.init_with_output(jax.random.key(0), x, False)[0], projections).shape
        (5, 2)
    """

    hidden: int
    dtype: jax.typing.DTypeLike | None = None
    hidden_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch features"]:
        """Predict the projection of the other view.

        If `train` is true, BatchNorm uses the statistics of the batch and updates `batch_stats`.
        """
        head = Projector(self.hidden, x.shape[-1], dtype=self.dtype, hidden_bias=self.hidden_bias, name="head")
        return head(x, train)


class Classifier(nn.Module):
    """A linear classifier with logits `W z + b`.

    Attributes:
        classes: Number of classes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from influence_ssl_jax.nets.heads import Classifier
        >>> layer = {"kernel": jnp.asarray([[1.0], [10.0]]), "bias": jnp.asarray([100.0])}
        >>> float(Classifier(1).apply({"params": {"output": layer}}, jnp.asarray([[2.0, 3.0]]))[0, 0])
        132.0
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch classes"]:
        """Classify representations; training and evaluation are the same."""
        del train
        return nn.Dense(self.classes, name="output")(x)


class Outputs(NamedTuple):
    """Outputs of one pass over a batch.

    Attributes:
        representation: Output of the backbone, which downstream tasks use.
        projection: Output of the projector, which a self-supervised loss compares (logits if the projector is a
            classifier).
        prediction: Output of the predictor; None if there is none.
    """

    representation: Float[Array, "batch features"]
    projection: Float[Array, "batch output"]
    prediction: Float[Array, "batch output"] | None


class SelfSupervised(nn.Module):
    """A network with heads: `predictor(projector(backbone(images)))`.

    Each method reads the parameters of the submodules that it calls and no others: `{"backbone": …}` is enough for
    `Network(module, method="encode")`, and is then all that is differentiated.

    Attributes:
        backbone: Module from images to representations.
        projector: Module from representations to projections.
        predictor: Module from projections to predictions, for losses that compare with a target network.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from influence_ssl_jax.nets.heads import Projector, SelfSupervised
        >>> from influence_ssl_jax.nets.linear import Linear
        >>> network = SelfSupervised(Linear(4), Projector(hidden=3, output=2))
        >>> outputs, _ = jax.eval_shape(
        ...     lambda x: network.init_with_output(jax.random.key(0), x, False), jnp.zeros((5, 2, 2, 1))
        ... )
        >>> outputs.representation.shape, outputs.projection.shape, outputs.prediction
        ((5, 4), (5, 2), None)
    """

    backbone: nn.Module
    projector: nn.Module
    predictor: nn.Module | None = None

    def __call__(self, images: Float[Array, "batch height width channels"], train: bool) -> Outputs:
        """Compute every output that training reads."""
        representation = self.backbone(images, train)
        projection = self.projector(representation, train)
        prediction = None if self.predictor is None else self.predictor(projection, train)
        return Outputs(representation, projection, prediction)

    def encode(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch features"]:
        """Compute the representation."""
        return self.backbone(images, train)

    def project(self, images: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch output"]:
        """Compute the projection."""
        return self.projector(self.backbone(images, train), train)

    def predict(self, images: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch output"]:
        """Compute the prediction.

        Raises:
            ValueError: If there is no predictor.
        """
        if self.predictor is None:
            raise ValueError("This network has no predictor, got method 'predict'; use 'project' or 'encode'.")
        return self.predictor(self.project(images, train), train)
