"""One encoder of everything: linen, nnx, a function, a folder; what counts of it; what is refused, and in which words."""

import dataclasses
import functools
import sys
import types
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx, struct
from flax.core import freeze

from influence_ssl_jax import trees
from influence_ssl_jax.augment import GaussianNoise
from influence_ssl_jax.checkpoint import CheckpointError
from influence_ssl_jax.curvature.blocks import discover
from influence_ssl_jax.curvature.gradients import ExampleGradients
from influence_ssl_jax.data import ToInput
from influence_ssl_jax.encoder import Encoder, Heads
from influence_ssl_jax.errors import InfluenceError, StructureError
from influence_ssl_jax.ihvp import Exact
from influence_ssl_jax.losses import BYOL, CosineDistance, SimCLR, SimSiam
from influence_ssl_jax.nets import Network
from influence_ssl_jax.nets.heads import Predictor, Projector, SelfSupervised
from influence_ssl_jax.nets.resnet import ResNet
from influence_ssl_jax.problem import Objective, Problem
from influence_ssl_jax.store import read_sealed, write_sealed
from influence_ssl_jax.types import Batch

INPUT = ToInput(6, 6)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 6, 6, 3)))
SCALE = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


class Outputs(NamedTuple):
    features: jax.Array
    logits: jax.Array


@struct.dataclass
class Fields:
    z: jax.Array


class Small(nn.Module):
    """A network whose training differs from its evaluation, with several outputs."""

    returns: str = "embedding"

    @nn.compact
    def __call__(self, x, train: bool = True, deterministic: bool | None = None):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x))
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        z = nn.Dense(5, name="dense")(x.mean((1, 2)))
        return {
            "embedding": z,
            "map": x,
            "dict": {"z": z, "map": x},
            "tuple": (x, z),
            "named": Outputs(z, z[:, :2]),
            "fields": Fields(z),
            "frozen": freeze({"z": z}),
            "whole": jnp.argmax(z, -1, keepdims=True),
            "turned": z.T,
            "nothing": z[:, :0],
            "text": {"z": "no array"},
        }[self.returns]


@functools.cache
def small_variables():
    held = jax.eval_shape(lambda: Small().init(jax.random.key(0), IMAGES, train=False, deterministic=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), held)


def small(returns="embedding", **options):
    return Encoder.from_linen(Small(returns), small_variables(), input=INPUT, **options)


@functools.cache
def small_in_whole():
    """Every parameter trained."""
    return small()


def by_hand(x):
    held = jax.tree.map(np.asarray, small_variables())
    stats, p = held["batch_stats"]["bn"], held["params"]
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    y = np.einsum("nhwcab,abco->nhwo", windows, p["conv"]["kernel"]) + p["conv"]["bias"]
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["bn"]["scale"] + p["bn"]["bias"]
    y = np.maximum(y, 0)
    return y, y.mean((1, 2)) @ p["dense"]["kernel"] + p["dense"]["bias"]


def embedded(encoder):
    return jax.jit(encoder.network)(encoder.params, encoder.frozen, IMAGES)


def squared_gradient(encoder):
    """The gradient of the sum of squares of the embeddings."""
    gradient = jax.jit(jax.grad(lambda params, frozen: jnp.sum(encoder.network(params, frozen, IMAGES) ** 2)))
    return gradient(encoder.params, encoder.frozen)


def test_linen_is_put_into_evaluation_mode_and_standardised():
    encoder = small(**SCALE)
    mean, std = (np.asarray(SCALE[name]) for name in ("mean", "std"))
    np.testing.assert_allclose(encoder(IMAGES), by_hand((np.asarray(IMAGES) - mean) / std)[1], rtol=1e-12)
    assert encoder.network.arguments == (("deterministic", True), ("train", False))
    assert (encoder.name, encoder.params.keys(), encoder.frozen.keys()) == (
        "Small",
        {"conv", "bn", "dense"},
        {"batch_stats"},
    )
    assert hash(encoder.network) == hash(small(**SCALE).network)
    assert encoder.sizes() == (3 * 9 * 4 + 4 + 8 + 25, 3 * 9 * 4 + 4 + 8 + 25)


@pytest.mark.parametrize(
    ("returns", "options", "which"),
    [
        ("map", {"pool": "mean"}, "mean"),
        ("dict", {"output": "z"}, "z"),
        ("dict", {"output": "map", "pool": "mean"}, "mean"),
        ("tuple", {"output": 1}, "z"),
        ("tuple", {"output": -1}, "z"),
        ("named", {"output": "features"}, "z"),
        ("fields", {"output": "z"}, "z"),
        ("frozen", {"output": "z"}, "z"),
    ],
)
def test_an_output_is_named_and_pooled(returns, options, which):
    features, z = by_hand(IMAGES)
    want = {"mean": features.mean((1, 2)), "z": z}[which]
    np.testing.assert_allclose(small(returns, **options)(IMAGES), want, rtol=1e-12)


def test_the_first_token_is_an_embedding():
    encoder = Encoder.from_function(
        lambda p, x: x.reshape(len(x), 4, 27) * p["a"], {"a": jnp.ones(())}, input=INPUT, pool="first"
    )
    np.testing.assert_array_equal(encoder(IMAGES), IMAGES.reshape(3, 4, 27)[:, 0])


@pytest.mark.parametrize(
    ("returns", "options", "said"),
    [
        ("map", {}, r"one embedding per image.*got \(3, 6, 6, 4\).*pool='mean'"),
        ("map", {"pool": "first"}, r"pool='first' reads \[batch, tokens, width\], got \(3, 6, 6, 4\)"),
        ("dict", {}, "it returns a dict of 'z', 'map'. Pass output="),
        ("dict", {"output": "y"}, "has no output 'y'; it returns a dict of 'z', 'map'"),
        ("tuple", {"output": 2}, "has no output 2; it returns a tuple of positions 0 … 1"),
        ("named", {}, "returns a Outputs of 'features', 'logits'"),
        ("fields", {}, "returns a Fields of 'z'"),
        ("embedding", {"output": "z"}, "returns a single array, so it has no output 'z'"),
        ("map", {"pool": "max"}, "pool must be one of 'mean', 'first', or None; got 'max'"),
        ("whole", {}, r"for 3 images it returns int\d+ \[3, 1\]"),
        ("turned", {}, r"for 3 images it returns float64 \[5, 3\]"),
        ("nothing", {}, r"for 3 images it returns float64 \[3, 0\]"),
    ],
)
def test_an_output_that_is_no_embedding_is_refused_with_what_there_is(returns, options, said, unchecked_types):
    with pytest.raises(StructureError, match=said):
        small(returns, **options)


class Asks(nn.Module):
    """A network whose modes have names of its own."""

    @nn.compact
    def __call__(self, x, mode, *, phase: int = 1):
        x = nn.Dense(2)(x.reshape(len(x), -1))
        return nn.BatchNorm(use_running_average=mode == "test")(x) * phase


def test_an_unknown_argument_is_asked_for():
    variables = jax.jit(Asks().init, static_argnames="mode")(jax.random.key(0), IMAGES, mode="test")
    with pytest.raises(StructureError, match=r"needs the argument 'mode'.*arguments=\{'mode': value\}"):
        Encoder.from_linen(Asks(), variables, input=INPUT)
    with pytest.raises(StructureError, match="has no argument 'train'; it has mode, phase"):
        Encoder.from_linen(Asks(), variables, input=INPUT, arguments={"mode": "test", "train": False})
    encoder = Encoder.from_linen(Asks(), variables, input=INPUT, arguments={"mode": "test", "phase": 2})
    assert encoder.network.arguments == (("mode", "test"), ("phase", 2))
    with pytest.raises(StructureError, match=r"Asks is in training mode: .*arguments="):
        Encoder.from_linen(Asks(), variables, input=INPUT, arguments={"mode": "train"})
    with pytest.raises(StructureError, match="no 'params'"):
        Encoder.from_linen(Asks(), variables["params"], input=INPUT, arguments={"mode": "test"})
    with pytest.raises(StructureError, match="The variables do not fit Asks"):
        Encoder.from_linen(Asks(), {"params": {"other": jnp.ones(2)}}, input=INPUT, arguments={"mode": "test"})
    with pytest.raises(StructureError, match="The collection name 'fixed' is used"):
        Encoder.from_linen(Asks(), {**variables, "fixed": {}}, input=INPUT, arguments={"mode": "test"})


class Model(nnx.Module):
    """An nnx network with a list of layers, statistics, and dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)])

    def __call__(self, x):
        x = self.drop(nnx.relu(self.bn(self.conv(x)))).mean((1, 2))
        for layer in self.layers:
            x = layer(x)
        return x


def test_nnx_in_evaluation_mode_while_the_model_stays_as_it_is():
    model = nnx.jit(lambda: Model(nnx.Rngs(0)))()
    encoder = Encoder.from_nnx(model, input=INPUT, **SCALE)
    assert (model.bn.use_running_average, model.drop.deterministic) == (False, False)
    assert encoder.params.keys() == {"conv", "bn", "layers"}
    mean, std = (jnp.asarray(SCALE[name]).reshape(1, 1, 1, 3) for name in ("mean", "std"))
    quiet = nnx.clone(model)
    quiet.eval()
    run = nnx.jit(lambda model, images: model((images - mean) / std))
    np.testing.assert_allclose(encoder(IMAGES), run(quiet, IMAGES), rtol=1e-6)
    doubled = {**encoder.params, "layers": jax.tree.map(lambda leaf: 2 * leaf, encoder.params["layers"])}
    quiet.layers[0].kernel[...] *= 2
    quiet.layers[1].kernel[...] *= 2
    network = jax.jit(encoder.network)
    np.testing.assert_allclose(network(doubled, encoder.frozen, IMAGES), run(quiet, IMAGES), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: encoder.network(p, encoder.frozen, IMAGES).sum()))(encoder.params)
    assert jnp.linalg.norm(gradient["layers"][1]["kernel"]) > 0
    assert hash(encoder.network) == hash(Encoder.from_nnx(model, input=INPUT, **SCALE).network)
    fixed = encoder.with_trainable(["layers/1"])
    assert fixed.sizes() == (25, 3 * 9 * 4 + 4 + 8 + 20 + 25)
    np.testing.assert_array_equal(fixed(IMAGES), encoder(IMAGES))


class Coupled(nnx.Module):
    """BatchNorm that is told to use the statistics of its batch, whatever the mode."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(108, 3, rngs=rngs)
        self.bn = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.linear(x.reshape(len(x), -1)), use_running_average=False)


def test_an_embedding_that_depends_on_its_neighbours_is_refused():
    with pytest.raises(StructureError, match="Coupled changes its state bn/mean, bn/var while"):
        Encoder.from_nnx(Coupled(nnx.Rngs(0)), input=INPUT)


class Draws(nnx.Module):
    """A network that draws numbers, or changes its state, also in evaluation mode."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(108, 3, rngs=rngs)
        self.noise, self.calls = rngs.fork(), nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1))

    def noisy(self, x):
        return self(x) + jax.random.normal(self.noise.params(), (1, 3))

    def counting(self, x):
        self.calls[...] += 1
        return self(x) * self.calls


class Normalised(nnx.Module):
    """Layers that write what does not count: a computed kernel, a counter of draws, and unchanged statistics."""

    def __init__(self, rngs):
        self.linear = nnx.SpectralNorm(nnx.Linear(108, 3, rngs=rngs), rngs=rngs)
        self.cell, self.bn = nnx.RNN(nnx.SimpleCell(1, 3, rngs=rngs)), nnx.BatchNorm(3, rngs=rngs)

    @nnx.remat
    def tail(self, x):
        return self.bn(self.cell(x[..., None])[:, -1])

    def __call__(self, x):
        return self.tail(self.linear(x.reshape(len(x), -1)))


def test_chance_and_changes_of_state_are_refused():
    model, shape = Draws(nnx.Rngs(0)), (108, 3)
    for method, said in (("noisy", r"draws random numbers \(random_bits\)"), ("counting", "changes its state calls")):
        with pytest.raises(StructureError, match=said):
            Encoder.from_nnx(model, input=INPUT, method=method)
    Encoder.from_nnx(Normalised(nnx.Rngs(0)), input=INPUT)

    def drop(params, frozen, images):
        return images.reshape(len(images), -1) @ (params * jax.random.bernoulli(frozen, 0.5, shape))

    with pytest.raises(StructureError, match=r"drop draws random numbers \(random_bits\)"):
        Encoder.from_function(drop, jnp.ones(shape), jnp.zeros(2, jnp.uint32), input=INPUT)

    def last(params, images):
        return images[:, 0, 0] * params * jnp.arange(len(images))[:, None]

    with pytest.raises(StructureError, match="or on its place among them"):
        Encoder.from_function(last, jnp.ones((1, 3)), input=INPUT)


GAIN = {"a": np.ones((1, 3))}


def brightness(params, images):
    return images.mean((1, 2)) * params["a"]


class ByPosition(nn.Module):
    """A module whose mode has no name for callers."""

    widths: list | None = None

    def __call__(self, x, train, /):
        return x[:, 0, 0] * train

    def embed(self, x):
        return x[:, 0, 0]


@pytest.fixture
def unchecked_types(monkeypatch):
    """Call the package as a user does, whose types nobody checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Encoder.from_linen(Small, {"params": GAIN}, input=INPUT), "a linen module, got the class Small"),
        (lambda: Encoder.from_linen(Small(), None, input=INPUT), "dict that init returned, got a NoneType"),
        (
            lambda: Encoder.from_linen(Small(), {"params": GAIN}, input=INPUT, method="embed"),
            "Small has no method 'embed'",
        ),
        (lambda: Encoder.from_linen(ByPosition(), {"params": GAIN}, input=INPUT), "takes 'train' by position only"),
        (lambda: Encoder.from_nnx(Small(), input=INPUT), "must be an nnx model, got a Small"),
        (lambda: Encoder.from_function(None, GAIN, input=INPUT), "must be a function, got a NoneType"),
        (lambda: Encoder.from_function(brightness, GAIN, GAIN, input=INPUT), r"\(params, frozen, images\), and takes"),
        (lambda: Encoder.from_function(brightness, {"b": GAIN["a"]}, input=INPUT), r"\[3, 6, 6, 3\].*KeyError: 'a'"),
        (lambda: Encoder.from_function(brightness, GAIN, input=(6, 6)), "input must be a ToInput.*got a tuple"),
        (lambda: Encoder.from_function(brightness, {"a": GAIN["a"] * 1j}, input=INPUT), "params/a is complex"),
        (lambda: Encoder.from_function(brightness, {"a": jnp.ones(1, jnp.bfloat16)}, input=INPUT), "a is bfloat16"),
        (lambda: Encoder.from_function(brightness, {"a": np.asarray(["x"])}, input=INPUT), "not of numbers"),
        (lambda: Encoder.from_function(brightness, {"a": 1}, input=INPUT), "params/a is a int, not an array"),
        (
            lambda: Encoder.from_function(brightness, {**GAIN, "a/b": GAIN["a"], "a": {"b": GAIN["a"]}}, input=INPUT),
            "the name",
        ),
        (lambda: Encoder.from_function(brightness, GAIN, input=INPUT, mean=(0.5, 0.5)), "each of 3 channels; got"),
        (lambda: Encoder.from_function(brightness, GAIN, input=ToInput(6, 6, 1), std=(0.5,) * 3), "each of 1 channels"),
        (lambda: Encoder.from_function(brightness, GAIN, input=INPUT, mean=(123.0,)), "0…255 by 255"),
        (
            lambda: Encoder.from_function(brightness, GAIN, input=INPUT, std=(0.0,)),
            "std is that of pixels in .0, 1., above",
        ),
        (lambda: Encoder.from_linen(ByPosition([]), {"params": GAIN}, input=INPUT, method="embed"), "has no hash"),
    ],
)
def test_what_is_no_encoder_is_refused_in_words(make, said, unchecked_types):
    with pytest.raises(StructureError, match=said):
        make()


def test_a_bound_module_and_a_single_pattern_are_accepted():
    bound = Small().bind(small_variables())
    encoder = Encoder.from_linen(bound, small_variables(), input=INPUT, trainable="dense")
    np.testing.assert_array_equal(encoder(IMAGES), small()(IMAGES))
    assert encoder.trainable == ("dense",)
    assert encoder.sizes()[0] == 25


def test_functions_of_any_tree_with_and_without_frozen_state():
    params = (jnp.ones((108, 2)), [{"bias": jnp.arange(2.0)}, jnp.asarray(3)])

    def function(params, images):
        return images.reshape(len(images), -1) @ params[0] + params[1][0]["bias"].reshape(1, -1) * params[1][1]

    encoder = Encoder.from_function(function, params, input=INPUT)
    np.testing.assert_allclose(encoder(IMAGES), function(params, IMAGES))
    assert encoder.sizes() == (218, 219)  # the whole number is not differentiated
    assert [leaf.shape for leaf in jax.tree.leaves(encoder.params)] == [(108, 2), (2,)]

    def scaled(params, frozen, images):
        return function(params, images) * frozen["scale"]

    beside = Encoder.from_function(scaled, params, {"scale": jnp.asarray(2.0)}, input=INPUT, name="mine")
    np.testing.assert_allclose(beside(IMAGES), 2 * encoder(IMAGES))
    assert beside.name == "mine"
    with pytest.raises(StructureError, match=r"params/1 is a function, not an array.*equinox"):
        Encoder.from_function(function, (params, lambda x: x), input=INPUT)
    with pytest.raises(StructureError, match="as NaN or infinity"):
        Encoder.from_function(lambda p, x: x[:, 0, 0] * p / 0, jnp.ones(()), input=INPUT)


def test_frozen_state_that_holds_parameters_is_refused():
    encoder = small()
    held = {**encoder.frozen, "params": encoder.params}
    for make in (
        lambda: Encoder(encoder.network, encoder.params, held, INPUT, "x"),
        lambda: encoder.network(encoder.params, held, IMAGES),
        lambda: Network(Small())(encoder.params, held, IMAGES),
    ):
        with pytest.raises(StructureError, match=r"entry 'params'.*replace the parameters that are scored"):
            make()


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (["dense"], ["dense/bias", "dense/kernel"]),
        (["*/bias"], ["bn/bias", "conv/bias", "dense/bias"]),
        (["bias"], ["bn/bias", "conv/bias", "dense/bias"]),
        (["!conv"], ["bn/bias", "bn/scale", "dense/bias", "dense/kernel"]),
        (["conv", "dense", "!bias"], ["conv/kernel", "dense/kernel"]),
        (["conv/ker*"], ["conv/kernel"]),
    ],
)
def test_trainable_parameters_are_chosen_by_pattern(patterns, kept):
    encoder = small(trainable=patterns)
    names = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(encoder.params)]
    assert names == kept
    whole = small_in_whole()
    assert encoder.digest() == whole.digest()
    again = encoder.with_trainable([])
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.frozen), (whole.params, whole.frozen))


@pytest.mark.parametrize("patterns", [["!conv"], ["conv", "dense", "!bias"]], ids=" ".join)
def test_fixing_parameters_changes_no_embedding_and_no_gradient_of_the_others(patterns):
    encoder, whole = small(trainable=patterns), small_in_whole()
    np.testing.assert_array_equal(encoder(IMAGES), whole(IMAGES))
    kept = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(encoder.params)]
    want = trees.partition(squared_gradient(whole), lambda name, _: name in kept)[0]
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    jax.tree.map(compare, squared_gradient(encoder), want)


def test_a_pattern_that_names_nothing_or_leaves_nothing_is_refused():
    with pytest.raises(StructureError, match=r"trainable='desne' names no parameter. There are bn/bias, bn/scale"):
        small(trainable=["desne"])
    with pytest.raises(StructureError, match="leaves no parameter"):
        small(trainable=["!*"])


class Tiny(nn.Module):
    """Two dense layers on the mean colours."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="last")(jnp.tanh(nn.Dense(3, name="first")(x.mean((1, 2)))))


def tiny(**options):
    rng = np.random.default_rng(2)
    shapes = {"first": {"kernel": (3, 3), "bias": (3,)}, "last": {"kernel": (3, 2), "bias": (2,)}}
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return Encoder.from_linen(Tiny(), {"params": params}, input=INPUT, **options)


KEYS = jax.random.split(jax.random.key(3), (2, 3))
BATCHES = Batch(jnp.stack([IMAGES, 1 - IMAGES]), KEYS, jnp.arange(6).reshape(2, 3))


def score(encoder, backend):
    """The scores of the first batch at λ = 0.3."""
    objective = Objective(encoder.network, GaussianNoise(0.3), CosineDistance())
    first, loss = jax.tree.map(lambda leaf: leaf[0], BATCHES), objective.loss

    @jax.jit
    def scored(params, frozen):
        problem = Problem(params, frozen, BATCHES, objective)
        images = objective.images(first, jnp.float64)
        values = lambda z: jnp.sum(loss.values(loss.outputs(objective.complete(z, params, frozen, first))))  # noqa: E731
        cotangents = jax.grad(values)(objective.embed(params, frozen, images))
        gradients = ExampleGradients(params, frozen, images, cotangents, encoder.network)
        return backend.quadratic_form(backend.fit(problem, jax.random.key(0)), gradients, jnp.asarray(0.3))

    return scored(encoder.params, encoder.frozen)


def test_the_score_is_that_of_the_trained_parameters_alone():
    """gᵀ(C + λI)⁻¹g over the chosen parameters, from rows and columns of the dense matrix of all of them."""
    whole, part = tiny(), tiny(trainable=["last"])
    loss = CosineDistance()
    objective = Objective(whole.network, GaussianNoise(0.3), loss)
    start = trees.ravel(whole.params)

    def residuals(vector, batch):
        params = trees.unravel(whole.params, vector)
        z = objective.embed(params, whole.frozen, objective.images(batch, jnp.float64))
        return z[0] / jnp.linalg.norm(z[0], axis=1, keepdims=True) - z[1] / jnp.linalg.norm(z[1], axis=1, keepdims=True)

    jacobian = jax.jit(jax.jacobian(residuals))
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], BATCHES) for i in range(2))
    jacobians = [np.asarray(jacobian(start, batch)) for batch in (first, second)]
    dense = np.mean([np.einsum("bri,brj->ij", j, j) / 3 for j in jacobians], axis=0)
    g = np.einsum("bri,br->bi", jacobians[0], jax.jit(residuals)(start, first))
    names = [
        "/".join(k.key for k in p) for p, x in jax.tree_util.tree_leaves_with_path(whole.params) for _ in range(x.size)
    ]
    kept = np.array([name.startswith("last") for name in names])
    assert kept.sum() == 8
    inverse = np.linalg.inv(dense[np.ix_(kept, kept)] + 0.3 * np.eye(8))
    want = np.einsum("ni,ij,nj->n", g[:, kept], inverse, g[:, kept])
    np.testing.assert_allclose(score(part, Exact()), want, rtol=1e-9)
    every = np.einsum("ni,ij,nj->n", g, np.linalg.inv(dense + 0.3 * np.eye(len(dense))), g)
    np.testing.assert_allclose(score(whole, Exact()), every, rtol=1e-9)
    assert np.abs(want / every - 1).max() > 1e-3


def test_layers_whose_parameters_are_fixed_are_no_blocks():
    part = small(trainable=["dense", "bn"])
    assert {block.name for block in discover(part.network, part.params, part.frozen, (6, 6, 3))} == {"dense", "bn"}


def test_a_layer_that_is_trained_in_part_is_a_block_of_that_part():
    whole, half = small(), small(trainable=["dense/kernel", "bn/bias"])
    blocks = discover(half.network, half.params, half.frozen, (6, 6, 3))
    assert {path for block in blocks for path in block.paths} == {("dense", "kernel"), ("bn", "bias")}
    cotangents = jnp.asarray(np.random.default_rng(4).normal(size=(1, 3, embedded(half).shape[1])))

    @jax.jit
    def squared_norms(params, frozen):
        return ExampleGradients(params, frozen, IMAGES[None], cotangents, half.network).squared_norms(blocks)

    def gradient(params, image, cotangent):
        return jax.grad(lambda p: whole.network(p, whole.frozen, image[None])[0] @ cotangent)(params)

    every = jax.jit(jax.vmap(gradient, (None, 0, 0)))(whole.params, IMAGES, cotangents[0])
    kept = [every["dense"]["kernel"], every["bn"]["bias"]]
    want = sum(np.sum(np.asarray(leaf).reshape(3, -1) ** 2, axis=1) for leaf in kept)
    np.testing.assert_allclose(squared_norms(half.params, half.frozen), want, rtol=1e-10)


@functools.cache
def byol():
    module = SelfSupervised(ResNet(1, None, (1, 1)), Projector(3, 4), Predictor(5))
    held = jax.jit(module.init, static_argnames="train")(jax.random.key(0), IMAGES, train=False)
    params, stats = held["params"], held["batch_stats"]
    slow = {
        "params": {
            name: jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) + 0.1), params[name])
            for name in ("backbone", "projector")
        },
        "batch_stats": {name: stats[name] for name in ("backbone", "projector")},
    }
    heads = Heads({name: params[name] for name in ("projector", "predictor")}, BYOL(), "byol")
    network = Network(module, "encode", **SCALE)
    frozen = {"batch_stats": stats, "target": slow}
    return Encoder(network, {"backbone": params["backbone"]}, frozen, ToInput(6, 6, resize="bicubic"), "byol", heads)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    encoder = byol()
    files = encoder.save(tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["encoder.json", "encoder.npz"]
    for place in (tmp_path / "net", files.arrays, str(tmp_path / "net" / "encoder")):
        loaded = Encoder.load(place)
        assert loaded.describe() == encoder.describe()
        assert (loaded.network, loaded.input, loaded.name) == (encoder.network, encoder.input, encoder.name)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables(), encoder.variables())
        assert loaded.pretraining()[0] == encoder.pretraining()[0]
    part = encoder.with_trainable(["layer2_0", "projector"])
    part.save(tmp_path / "part")
    again = Encoder.load(tmp_path / "part")
    assert again.trainable == ("layer2_0", "projector")
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.frozen), (part.params, part.frozen))
    assert again.sizes() == part.sizes()
    objective, params = again.pretraining()
    assert trees.size(params) == part.sizes()[0] + trees.size(part.heads.params["projector"])
    assert (objective.network.network, objective.loss) == (encoder.pretraining()[0].network, BYOL())


def test_the_target_of_simsiam_is_the_network_itself_whichever_parameters_are_trained(tmp_path):
    made = byol()
    same = {name: made.variables()["params"][name] for name in ("backbone", "projector")}
    copied = dataclasses.replace(made, frozen={**made.frozen, "target": {**made.frozen["target"], "params": same}})
    frozen = {"batch_stats": made.frozen["batch_stats"]}
    heads = dataclasses.replace(made.heads, loss=SimSiam())
    dataclasses.replace(made, frozen=frozen, heads=heads).save(tmp_path / "simsiam")
    ours = Encoder.load(tmp_path / "simsiam")
    losses = []
    for encoder in (copied, ours, ours.with_trainable(["layer2_0", "predictor"])):
        objective, params = encoder.pretraining()
        quiet = dataclasses.replace(objective, views=GaussianNoise(0.1))
        batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)
        losses.append(float(jax.jit(quiet)(params, encoder.frozen, batch)))
    np.testing.assert_allclose(losses[1:], losses[0] / 4 - 1, rtol=1e-10)


def test_outputs_are_those_of_the_heads():
    encoder = byol()
    z, projected, predicted = (embedded(encoder.at(output)) for output in ("encoder", "projector", "predictor"))
    assert (z.shape, projected.shape, predicted.shape) == ((3, 2), (3, 4), (3, 4))
    np.testing.assert_array_equal(embedded(encoder.at("predictor").at("encoder")), z)
    half = embedded(encoder.computing_in("bfloat16").at("projector"))
    assert 0 < jnp.linalg.norm(half - projected) < 0.1 * jnp.linalg.norm(projected)
    with pytest.raises(InfluenceError, match="Small has no projector; use encoder"):
        small().at("projector")
    with pytest.raises(
        InfluenceError, match="Small has no heads, so the curvature of the pretraining loss is not defined"
    ):
        small().pretraining()
    with pytest.raises(StructureError, match=r"Small has no field dtype.*cannot compute in another type"):
        small().computing_in("bfloat16")


class Plain(nn.Module):
    """A backbone of the user."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        return nn.Dense(2, name="dense")(x.reshape(len(x), -1))


def test_what_a_file_cannot_rebuild_is_refused(tmp_path):
    with pytest.raises(StructureError, match=r"Small is not a network of this package.*package.module:function"):
        small().save(tmp_path)
    inside = Network(SelfSupervised(Plain(), Projector(3, 4)), "encode")
    params = {"backbone": {"dense": {"kernel": np.ones((108, 2)), "bias": np.ones(2)}}}
    mixed = Encoder(inside, params, {}, INPUT, "mixed")
    assert mixed.describe()["network"]["module"] == "SelfSupervised"
    with pytest.raises(StructureError, match="Plain is not a network of this package"):
        mixed.save(tmp_path)
    function = Encoder.from_function(lambda p, x: x[:, 0, 0] * p, jnp.ones(()), input=INPUT)
    with pytest.raises(StructureError, match=r"your own function or model.*package.module:function"):
        function.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("encoder"), "describes no encoder"),
        (lambda held: held["encoder"].pop("input"), "describes its encoder wrongly"),
        (lambda held: held["encoder"].update(network=3), "describes its encoder wrongly"),
        (
            lambda held: held["encoder"]["network"]["module"].update({"class": "os.system"}),
            "names the network 'os.system'",
        ),
        (
            lambda held: held["encoder"]["network"]["module"]["backbone"].update(command="x"),
            "unknown fields command",
        ),
        (
            lambda held: held["encoder"]["network"]["module"]["backbone"].update(width=2),
            "belongs to another architecture",
        ),
        (lambda held: held["encoder"]["input"].update(height="6"), "Cannot restore ToInput"),
        (
            lambda held: held["encoder"]["network"]["module"]["backbone"].update(stem="caffe"),
            "the stem 'caffe'; it must be one of 'cifar'",
        ),
        (lambda held: held["encoder"]["network"]["module"]["backbone"].update(width="2"), "it must be a int"),
        (
            lambda held: held["encoder"]["network"]["module"]["backbone"].update(width=-1),
            "describes its encoder wrongly",
        ),
        (lambda held: held["encoder"]["network"].update(mean=[123, 117, 104]), "0…255 by 255"),
        (lambda held: held["encoder"]["network"].update(method="embed"), "has no method 'embed'"),
        (
            lambda held: held["encoder"]["network"].update(
                module={"class": "Linear", "features": 2}, method="__call__"
            ),
            "heads of a network without any",
        ),
    ],
)
def test_a_changed_description_is_refused(tmp_path, change, said):
    files = byol().save(tmp_path)
    held = read_sealed(files.description)
    change(held)
    write_sealed(files.description, held)
    with pytest.raises((CheckpointError, InfluenceError), match=said):
        Encoder.load(tmp_path)


def test_what_is_no_saved_encoder_is_refused(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(CheckpointError, match="is converted by `influence-ssl import`"):
        Encoder.load(tmp_path / "weights.pth")
    for place in (":function", "package..module:function", "module:"):
        with pytest.raises(InfluenceError, match=r"neither a file nor package\.module:function; check"):
            Encoder.load(place)


def test_a_function_of_a_module_returns_the_encoder(tmp_path, monkeypatch):
    module = types.ModuleType("mine")
    module.encoder, module.made, module.other = small, small(), lambda: 3
    monkeypatch.setitem(sys.modules, "mine", module)
    for place in ("mine:encoder", "mine:made"):
        np.testing.assert_array_equal(Encoder.load(place)(IMAGES), small()(IMAGES))
    for place, said in {
        "mine:absent": "mine has no 'absent'",
        "mine:other": "must be or return an Encoder, got a int",
        "nowhere.at_all:encoder": "neither a file nor package.module:function: No module named 'nowhere'",
    }.items():
        with pytest.raises(InfluenceError, match=said):
            Encoder.load(place)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_here.py").write_text("import mine\n\nmine.nothing\n")
    (tmp_path / "broken_later.py").write_text("def make():\n    raise KeyError('weights')\n")
    with pytest.raises(InfluenceError, match=r"broken_here cannot be imported: AttributeError.*broken_here.py, line 3"):
        Encoder.load("broken_here:make")
    with pytest.raises(
        InfluenceError, match=r"broken_later:make failed: KeyError: 'weights' \(.*broken_later.py, line 2"
    ):
        Encoder.load("broken_later:make")
    (tmp_path / "beside_me.py").write_text("from mine import encoder\n")
    np.testing.assert_array_equal(Encoder.load("beside_me:encoder")(IMAGES), small()(IMAGES))


def test_an_embedding_of_fewer_bits_than_the_images_is_converted():
    def half(params, images):
        return (images[:, 0, 0] * params["a"]).astype(jnp.bfloat16)

    encoder = Encoder.from_function(half, GAIN, input=INPUT)
    np.testing.assert_array_equal(encoder(IMAGES), half(GAIN, IMAGES).astype(IMAGES.dtype))
    assert encoder(IMAGES).dtype == IMAGES.dtype


def test_another_function_of_the_same_name_is_another_network():
    def described(constant, inner=0.0, factor=1):
        def net(params, images):
            moved = jax.jit(lambda x: x + jnp.full((1, 3), inner))(images.mean((1, 2)))
            return factor * moved * params["a"] + jnp.asarray([constant] * 3).reshape(1, 3)

        return Encoder.from_function(net, GAIN, input=INPUT).describe()["network"]

    assert described(1.0) == described(1.0)
    assert described(1.0)["module"].endswith("net")
    others = (described(1.0), described(2.0), described(1.0, 3.0), described(1.0, 0.0, 2))
    assert len({each["program"] for each in others}) == 4
    before, after = (Encoder.from_nnx(Draws(nnx.Rngs(seed)), input=INPUT) for seed in (0, 1))
    assert before.describe() == after.describe()  # other parameters, which `digest` sees
    assert "program" in small().describe()["network"]
    assert small().describe() == small(trainable=["dense"]).describe() | {"trainable": []}
    assert "program" not in byol().describe()["network"]


def test_a_loss_without_views_is_not_guessed():
    heads = Heads(byol().heads.params, SimCLR(), None)
    encoder = Encoder(byol().network, byol().params, byol().frozen, INPUT, "x", heads)
    with pytest.raises(InfluenceError, match="no known pretraining loss"):
        encoder.pretraining()
