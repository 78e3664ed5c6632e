"""What every framework is given: one ResNet-18, one set of images, the same two views of each."""

import dataclasses
import os
from pathlib import Path
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from influence_ssl_jax import trees
from influence_ssl_jax.augment.noise import GaussianNoise
from influence_ssl_jax.data import Digits, Tfds, ToInput, resident
from influence_ssl_jax.losses import CosineDistance
from influence_ssl_jax.nets.linear import Linear
from influence_ssl_jax.nets.network import Network
from influence_ssl_jax.nets.resnet import MOMENTUM, ResNet18
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.train.export import load
from influence_ssl_jax.types import Batch, Frozen, Params

ENCODER = Path(__file__).parents[1] / "experiments" / "encoders" / "simclr_w16_cifar10"
PREPARED = "INFLUENCE_SSL_TFDS"
"""Environment variable: where tensorflow-datasets has prepared CIFAR-10; without it the bundled digits are used."""
TRAINED_WIDTH = 16
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network and one set of images.

    Attributes:
        network: The ResNet-18 of every table, or one linear layer, which the tests compile in seconds.
        width: Of the ResNet-18. At 16 its weights are the committed SimCLR encoder's, otherwise those that training
            would start from, with the running statistics of the first batch.
        examples: Images.
        batch: Images at a time; two views each.
        size: Height and width of an image.
        sigma: Noise of the second view.
    """

    network: Literal["resnet18", "linear"] = "resnet18"
    width: int = 16
    examples: int = 256
    batch: int = 64
    size: int = 32
    sigma: float = 0.2


class Shared(NamedTuple):
    """The JAX side of a setting, and the pixels that the other side is given.

    Attributes:
        objective: Mean cosine distance of the two views' representations.
        params: θ.
        frozen: Running statistics.
        batches: The images, leading axes [batches, batch].
        views: Both views of every image, [2, examples, height, width, channels], pixels as the network reads them.
        data: Name of the data set.
    """

    objective: Objective
    params: Params
    frozen: Frozen
    batches: Batch
    views: np.ndarray
    data: str

    def problem(self) -> Problem:
        """Return the second moment of the examples' own gradients.

        Every peer can compute it.
        """
        return Problem(self.params, self.frozen, self.batches, self.objective, "empirical_fisher")


def shared(setting: Setting, dtype: jax.typing.DTypeLike = jnp.float32) -> Shared:
    """Return the weights, images and views of a setting."""
    network = Network({"resnet18": ResNet18, "linear": Linear}[setting.network](setting.width), mean=MEAN, std=STD)
    objective = Objective(network, GaussianNoise(setting.sigma), CosineDistance())
    batches, data = images(setting)
    draw = jax.jit(lambda batch: objective.images(batch, dtype))
    views = [draw(jax.tree.map(lambda leaf, i=i: leaf[i], batches)) for i in range(len(batches.index))]
    if setting.network == "resnet18" and setting.width == TRAINED_WIDTH:
        trained = load(ENCODER)
        params, frozen = trained.params["backbone"], {"batch_stats": trained.frozen["batch_stats"]["backbone"]}
    else:
        params, frozen = initial(network.module, network.standardise(views[0][0].astype(jnp.float32)))
    params, frozen = (trees.astype(tree, dtype) for tree in (params, frozen))
    return Shared(objective, params, frozen, batches, np.concatenate(views, axis=1), data)


def images(setting: Setting) -> tuple[Batch, str]:
    """Return random images of CIFAR-10 if prepared, else of the digits."""
    prepared = os.environ.get(PREPARED)
    source = Tfds("cifar10", "train", prepared) if prepared else Digits(setting.size)
    to_input = ToInput(setting.size, setting.size)
    batches = resident(source.open(), to_input, setting.examples, setting.batch, seed=0)
    return batches, "CIFAR-10" if prepared else "digits"


def initial(module: nn.Module, standardised: Array) -> tuple[Params, Frozen]:
    """Return the module's initial parameters, with running statistics of a batch.

    With statistics that are not the activations' own, these can shrink from layer to layer until gradients are next to
    nothing, and a peer's eigendecomposition of what is left fails.
    """
    variables = module.init(jax.random.key(0), standardised[:1], train=False)
    if "batch_stats" not in variables:
        return variables["params"], {}
    nothing = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = module.apply(
        {"params": variables["params"], "batch_stats": nothing}, standardised, train=True, mutable=["batch_stats"]
    )
    return variables["params"], jax.tree.map(lambda leaf: leaf / (1 - MOMENTUM), updated)


def random_vector(like: Params) -> Params:
    """Draw normal numbers in the structure of the parameters."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), like)
