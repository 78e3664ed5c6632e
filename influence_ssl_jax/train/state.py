"""Define the state of training and one step of it."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from influence_ssl_jax import randomness, trees
from influence_ssl_jax.losses.loss import Embeddings
from influence_ssl_jax.nets.convolution import canonical_convolutions
from influence_ssl_jax.nets.network import EmbeddingFunction, Network
from influence_ssl_jax.randomness import Stream
from influence_ssl_jax.train.settings import Pretrain
from influence_ssl_jax.types import Batch, Frozen, Params, PyTree

Metrics = dict[str, Float[Array, ""]]
Step = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The variables of training that a step reads and writes.

    A run continues from them as if it had not stopped.

    Attributes:
        step: Number of steps.
        params: Parameters θ of the online network.
        frozen: Running statistics, and parameters and statistics of the target network if there is one.
        optimiser: State of the optimiser.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Frozen
    optimiser: PyTree


def initial(settings: Pretrain, image_shape: tuple[int, int, int]) -> TrainState:
    """Return the state before the first step.

    Parameters are drawn from `settings.seed`; the target network equals the online network.

    Args:
        settings: Settings of the run.
        image_shape: (height, width, channels) of the input.
    """
    objective = settings.objective()
    variables = _initialise(_linen(objective.network), settings.seed, image_shape)
    frozen = {name: value for name, value in variables.items() if name != "params"}
    target = objective.target
    if target is not None and not objective.loss.target_is_online:
        # The target network has no predictor: it copies the online parameters that its method reads.
        shapes = jax.eval_shape(lambda: _initialise(_linen(target), settings.seed, image_shape))
        frozen["target"] = jax.tree.map(jnp.copy, _restrict(variables, shapes))
    optimiser = settings.optimiser.transformation(settings.schedule(1)).init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], frozen, optimiser)


@functools.lru_cache(maxsize=8)
def make_step(settings: Pretrain, steps_per_epoch: int) -> Step:
    """Compile one step `(state, batch) -> (state, metrics)`, once for each process.

    The step overwrites the state that it is called with. Every view passes through the network separately, as in
    solo-learn: BatchNorm normalises a view by the statistics of that view's batch. Running statistics move once in a
    step, by the mean over the views. The target network is in training mode too, and moves after each step: `ξ ← τ ξ +
    (1 − τ) θ`, where `τ` rises from `settings.target_momentum` to 1 along a cosine (arXiv 2006.07733, section 3.3). A
    loss whose target network is the online network reads the projections of the same pass.
    """
    objective = settings.objective(settings.precision)
    total = settings.epochs * steps_per_epoch
    rate = settings.schedule(steps_per_epoch)
    optimiser = settings.optimiser.transformation(rate)

    def loss(params: Params, frozen: Frozen, batch: Batch) -> tuple[Float[Array, ""], Frozen]:
        images = objective.images(batch, jnp.float32)
        network, target = _linen(objective.network), None
        if objective.loss.target_is_online:
            # One pass computes predictions and projections; the loss does not differentiate the latter.
            both = dataclasses.replace(network, method="__call__")
            (_, target, online), updated = _embed_in_training(both, params, _own(frozen), images)
        else:
            online, updated = _embed_in_training(network, params, _own(frozen), images)
        if objective.target is not None and not objective.loss.target_is_online:
            slow = frozen["target"]
            target, statistics = _embed_in_training(_linen(objective.target), slow["params"], _own(slow), images)
            updated = {**updated, "target": {"params": slow["params"], **statistics}}
        return objective.loss(Embeddings(online, target, batch.label)), updated

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient_of = jax.value_and_grad(loss, has_aux=True)
        (value, frozen), gradient = gradient_of(state.params, state.frozen, batch)
        update, moments = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, update)
        if "target" in frozen:
            frozen = _follow(frozen, params, target_momentum(settings.target_momentum, state.step, total))
        metrics = {"loss": value, "gradient_norm": trees.norm(gradient), "learning_rate": jnp.asarray(rate(state.step))}
        return TrainState(state.step + 1, params, frozen, moments), metrics

    return jax.jit(step, donate_argnums=0)


def target_momentum(initial: float, step: Int[Array, ""], total: int) -> Float[Array, ""]:
    """Return `τ = 1 − (1 − τ₀) (cos(π step / total) + 1) / 2`."""
    return 1 - (1 - initial) * (jnp.cos(jnp.pi * step / total) + 1) / 2


def _embed_in_training(
    network: Network, params: Params, statistics: Frozen, images: Float[Array, "views batch height width channels"]
) -> tuple[PyTree, Frozen]:
    """Embed every view in training mode; return embeddings and new running statistics.

    Embeddings are what the network's method returns, with a leading axis of views.
    """

    def one(view: Float[Array, "batch height width channels"]) -> tuple[PyTree, Frozen]:
        with canonical_convolutions():
            return network.module.apply(
                {"params": params, **statistics},
                network.standardise(view),
                method=network.method,
                mutable=list(statistics),
                train=True,
            )

    # One view after the other: on a CPU two small batches stay in the cache, one large batch does not.
    embeddings, moved = jax.lax.map(one, images)
    return embeddings, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), moved)


def _linen(network: EmbeddingFunction) -> Network:
    """Return a linen network, whose module has a training mode.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(network, Network):
        raise TypeError(f"Training needs a linen network, got a {type(network).__name__}.")
    return network


def _follow(frozen: Frozen, params: Params, momentum: Float[Array, ""]) -> Frozen:
    """Move the target network towards the online network."""
    target = frozen["target"]
    followed = jax.tree.map(
        lambda slow, fast: momentum * slow + (1 - momentum) * fast,
        target["params"],
        _restrict(params, target["params"]),
    )
    return {**frozen, "target": {**target, "params": followed}}


def _initialise(network: Network, seed: int, image_shape: tuple[int, int, int]) -> PyTree:
    """Draw initial variables."""
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    # Only shapes pass through the network, so that only the draws of parameters are compiled.
    method = getattr(type(network.module), network.method)
    return network.module.lazy_init(randomness.root(seed, Stream.INITIALISATION), images, method=method, train=False)


def _own(variables: PyTree) -> PyTree:
    """Return the variables without parameters and target network."""
    return {name: value for name, value in variables.items() if name not in ("params", "target")}


def _restrict(tree: PyTree, like: PyTree) -> PyTree:
    """Select the entries of nested dicts that `like` has."""
    if isinstance(like, dict):
        return {name: _restrict(tree[name], branch) for name, branch in like.items()}
    return tree
