"""Tiny networks of every kind that people write: linen modules, nnx modules and plain functions."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

SHAPE = (4, 4, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with parameters drawn by NumPy.

    Attributes:
        network: `(params, frozen, images) -> embeddings`.
        params: In float64.
        frozen: What it reads beside them.
        loose: Paths of the parameters that no site explains.
        tolerance: Relative to the largest entry.
    """

    network: Callable
    params: object
    frozen: object
    loose: frozenset[str] = frozenset()
    tolerance: float = 1e-10


CASES: dict[str, Callable[[], Case]] = {}


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5 + 0.1), tree)


def function(shapes, loose=(), frozen=None, tolerance=1e-10):
    """Register a plain function with parameters of these shapes."""

    def register(network):
        tree = jax.tree.map(lambda s: np.zeros(s), shapes, is_leaf=lambda s: isinstance(s, tuple) and _shape(s))
        CASES[network.__name__] = lambda: Case(network, drawn(tree), frozen or {}, frozenset(loose), tolerance)
        return network

    return register


def _shape(value):
    return all(isinstance(part, int) for part in value)


def linen(name, module, loose=(), tolerance=1e-10, **arguments):
    """Register a linen module from images to embeddings or to anything with leading axis one."""

    def case():
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), **arguments))
        rest = {key: value for key, value in variables.items() if key != "params"}
        positive = jax.tree.map(lambda leaf: jnp.asarray(np.abs(leaf) + 0.5), drawn(rest, 1))

        def network(params, frozen, images):
            out = module.apply({"params": params, **frozen}, images, **arguments)
            return out.reshape(images.shape[0], -1)

        return Case(network, drawn(variables["params"]), positive, frozenset(loose), tolerance)

    CASES[name] = case


def module(loose=(), tolerance=1e-10):
    """Register a compact call."""

    def register(call):
        kind = type(call.__name__, (nn.Module,), {"__call__": nn.compact(call), "__module__": __name__})
        linen(call.__name__, kind(), loose, tolerance)
        return call

    return register


# Dense layers and convolutions


@module()
def mlp(self, x):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(3)(nn.relu(nn.Dense(5, use_bias=False)(jnp.tanh(nn.Dense(4)(x)))))


def convolution(name, **settings):
    def call(self, x):
        return jnp.tanh(nn.Conv(4, **settings)(x)).mean((1, 2))

    call.__name__ = name
    module()(call)


convolution("conv_strided", kernel_size=(3, 2), strides=(2, 1))
convolution("conv_dilated", kernel_size=(2, 2), kernel_dilation=(2, 1), padding="VALID")
convolution("conv_input_dilated", kernel_size=(2, 2), input_dilation=(2, 2), padding=((0, 1), (1, 0)))
convolution("conv_circular", kernel_size=(3, 3), padding="CIRCULAR", use_bias=False)
convolution("conv_reflect", kernel_size=(3, 3), padding="REFLECT")
convolution("conv_grouped", kernel_size=(3, 3), feature_group_count=2)
convolution("conv_depthwise", kernel_size=(3, 3), feature_group_count=2, use_bias=False)


convolution("conv_tiled", kernel_size=(3, 2), strides=(3, 2), padding="VALID")
convolution("conv_tiled_grouped", kernel_size=(2, 2), strides=(2, 2), padding="VALID", feature_group_count=2)


@module()
def conv_1d(self, x):
    x = x.reshape(x.shape[0], 8, 4)
    return jnp.tanh(nn.Conv(3, (3,), strides=2)(x)).mean(1)


@module()
def conv_1d_causal(self, x):
    return jnp.tanh(nn.Conv(3, (3,), padding="CAUSAL")(x.reshape(x.shape[0], 8, 4))).mean(1)


@module()
def conv_3d(self, x):
    return jnp.tanh(nn.Conv(3, (2, 2, 2))(x[..., None])).mean((1, 2, 3))


@module()
def conv_transposed(self, x):
    x = jnp.tanh(nn.ConvTranspose(3, (3, 3), strides=(2, 2))(x))
    return nn.ConvTranspose(2, (2, 2), transpose_kernel=True)(x).mean((1, 2))


@module()
def conv_of_batched_windows(self, x):
    x = x.reshape(x.shape[0], 2, 2, 4, 2)
    return jnp.tanh(nn.Conv(3, (2, 2))(x)).mean((1, 2, 3))


@module()
def conv_unshared(self, x):
    return jnp.tanh(nn.ConvLocal(3, (2, 2), padding="VALID")(x)).mean((1, 2))


@function({"kernel": (3, 2, 3, 3), "bias": (3,)})
def conv_channels_first(params, frozen, images):
    x = jnp.moveaxis(images, -1, 1)
    y = lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jnp.tanh(y + params["bias"][None, :, None, None]).mean((2, 3))


# Norms


@module()
def batch_norm(self, x):
    x = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (2, 2))(x))
    return jnp.tanh(x).mean((1, 2))


@module()
def batch_norm_of_rows(self, x):
    x = nn.BatchNorm(use_running_average=True, axis=1)(x)
    return jnp.tanh(nn.Dense(3)(x)).mean((1, 2))


@module()
def layer_norm(self, x):
    return jnp.tanh(nn.LayerNorm()(nn.Dense(4)(x))).mean((1, 2))


@module()
def group_norm(self, x):
    return jnp.tanh(nn.GroupNorm(2)(nn.Conv(4, (2, 2))(x))).mean((1, 2))


@module()
def instance_norm(self, x):
    return jnp.tanh(nn.InstanceNorm()(nn.Conv(4, (2, 2))(x))).mean((1, 2))


@module()
def rms_norm(self, x):
    return jnp.tanh(nn.RMSNorm()(nn.Dense(4)(x))).mean((1, 2))


@module(loose=["Dense_0/kernel", "WeightNorm_0/Dense_0/kernel/scale"])
def weight_norm(self, x):
    return jnp.tanh(nn.WeightNorm(nn.Dense(4))(x)).mean((1, 2))


@module(loose=["Dense_0/kernel"])
def spectral_norm(self, x):
    return jnp.tanh(nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)).mean((1, 2))


@function({"scale": (2,), "shift": (2,), "kernel": (2, 3)})
def one_plus_scale(params, frozen, images):
    x = images / jnp.sqrt(jnp.mean(images**2, axis=-1, keepdims=True) + 1e-6)
    return jnp.tanh((x * (1 + params["scale"]) - params["shift"]) @ params["kernel"]).mean((1, 2))


# Attention


@module()
def attention(self, x):
    x = nn.Dense(4)(x.reshape(x.shape[0], 16, 2)[:, :5])
    return (x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))).mean(1)


@module()
def vision_transformer(self, x):
    x = nn.Conv(4, (2, 2), strides=(2, 2), padding="VALID")(x).reshape(x.shape[0], -1, 4)
    token = self.param("cls", nn.initializers.zeros, (1, 1, 4))
    registers = self.param("registers", nn.initializers.zeros, (1, 2, 4))
    rows = [jnp.broadcast_to(part, (x.shape[0], *part.shape[1:])) for part in (token, registers)]
    x = jnp.concatenate([*rows, x + self.param("positions", nn.initializers.zeros, (1, 4, 4))], axis=1)
    y = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    x = x + y * self.param("scale", nn.initializers.ones, (4,))
    x = x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))
    return nn.LayerNorm()(x)[:, 0]


@module()
def dense_general(self, x):
    x = nn.DenseGeneral((2, 3), axis=(-2, -1))(x.reshape(x.shape[0], 4, 4, 2))
    return nn.DenseGeneral(3, axis=(-1, -2))(jnp.tanh(x)).mean(1)


@module()
def einsum(self, x):
    x = nn.Einsum((2, 4, 3), "bhwc,chd->bhwd", use_bias=False)(x)
    return jnp.tanh(nn.Einsum((3, 2), "bhwd,de->behw")(x)).mean((2, 3))


@function({"qkv": (2, 12), "bias": (12,), "out": (4, 3)})
def attention_fused(params, frozen, images):
    x = images.reshape(images.shape[0], 16, 2)[:, :5]
    q, k, v = jnp.split(x @ params["qkv"] + params["bias"], 3, axis=-1)
    weights = jax.nn.softmax(jnp.einsum("btc,buc->btu", q, k), axis=-1)
    return (weights @ v @ params["out"]).mean(1)


@function({"q": (2, 4), "k": (2, 4), "v": (2, 4)})
def attention_of_joined_kernels(params, frozen, images):
    x = images.reshape(images.shape[0], 16, 2)[:, :5]
    q, k, v = jnp.split(x @ jnp.concatenate([params["q"], params["k"], params["v"]], axis=1), 3, axis=-1)
    return (jax.nn.softmax(q @ k.swapaxes(1, 2), axis=-1) @ v).mean(1)


@function({"qkv": (3, 2, 4)})
def attention_of_sliced_kernel(params, frozen, images):
    x = images.reshape(images.shape[0], 16, 2)[:, :5]
    q, k, v = (x @ params["qkv"][part] for part in range(3))
    return (jax.nn.softmax(q @ k.swapaxes(1, 2), axis=-1) @ v).mean(1)


@function({"kernel": (2, 3, 2, 4)})
def grouped_by_heads(params, frozen, images):
    x = images.reshape(images.shape[0], 4, 2, 4)
    return jnp.tanh(jnp.einsum("bthc,hdec->bthde", x, params["kernel"])).mean((1, 4)).reshape(images.shape[0], -1)


# Tokens, positions, tables


@function({"table": (8, 3), "head": (3, 2)})
def embedding(params, frozen, images):
    rows = params["table"][jnp.clip(jnp.floor(images * 4), 0, 7).astype(int)]
    return jnp.tanh(rows @ params["head"]).mean((1, 2, 3))


@module()
def embed(self, x):
    return jnp.tanh(nn.Embed(8, 3)(jnp.clip(jnp.floor(x * 4), 0, 7).astype(int))).mean((1, 2, 3))


@function({"table": (7, 2), "q": (2, 2)})
def relative_positions(params, frozen, images):
    x = images.reshape(images.shape[0], 16, 2)[:, :4]
    bias = params["table"][np.arange(4)[:, None] - np.arange(4)[None] + 3]
    scores = jnp.einsum("btc,buc->btu", x @ params["q"], x)[..., None] + bias
    return jnp.einsum("btuh,buc->bhc", jax.nn.softmax(scores, axis=2), x).reshape(images.shape[0], -1)


@function({"token": (2,), "kernel": (2, 3)})
def mask_token(params, frozen, images):
    hidden = jnp.where(images[..., :1] > 0.5, params["token"], images)
    return jnp.tanh(hidden @ params["kernel"]).mean((1, 2))


@function({"positions": (8, 2), "kernel": (2, 3)})
def sliced_positions(params, frozen, images):
    x = images.reshape(images.shape[0], 16, 2)[:, :5] + params["positions"][1:6]
    return jnp.tanh(x @ params["kernel"]).mean(1)


@function({"positions": (2, 2, 2), "kernel": (2, 3)})
def resized_positions(params, frozen, images):
    grid = jax.image.resize(params["positions"], (4, 4, 2), "bilinear")
    return jnp.tanh((images + grid) @ params["kernel"]).mean((1, 2))


# Kernels that the network makes


@function({"kernel": (3, 3, 2, 4), "gain": (4,)}, loose=["kernel"])
def standardised(params, frozen, images):
    kernel = params["kernel"]
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-3)
    y = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y * params["gain"]).mean((1, 2))


@function({"kernel": (2, 4), "bias": (4,)}, frozen={"mask": jnp.asarray([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 0.0]])})
def masked(params, frozen, images):
    return jnp.tanh(images @ (params["kernel"] * frozen["mask"]) + params["bias"]).mean((1, 2))


@module()
def masked_conv(self, x):
    mask = jnp.asarray(np.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3) % 3 > 0)
    return jnp.tanh(nn.Conv(3, (2, 2), mask=mask)(x)).mean((1, 2))


@function({"kernel": (2, 4), "down": (2, 1), "up": (1, 4)}, loose=["down", "up"])
def low_rank_merged(params, frozen, images):
    return jnp.tanh(images @ (params["kernel"] + 0.5 * params["down"] @ params["up"])).mean((1, 2))


@function({"down": (2, 1), "up": (1, 4)}, frozen={"kernel": jnp.ones((2, 4))})
def low_rank_adapter(params, frozen, images):
    return jnp.tanh(images @ frozen["kernel"] + images @ params["down"] @ params["up"]).mean((1, 2))


@jax.custom_vjp
def rounded(x):
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (2 * g,))


@function({"kernel": (2, 4)}, loose=["kernel"])
def quantised_straight_through(params, frozen, images):
    return jnp.tanh(images @ rounded(params["kernel"])).mean((1, 2))


@function({"kernel": (2, 4)}, loose=["kernel"])
def quantised_by_stopped_gradient(params, frozen, images):
    kernel = params["kernel"]
    return jnp.tanh(images @ (kernel + lax.stop_gradient(jnp.round(kernel) - kernel))).mean((1, 2))


@function({"temperature": (), "kernel": (2, 4)}, loose=["temperature"])
def exponential_temperature(params, frozen, images):
    return jnp.tanh(images @ params["kernel"] * jnp.exp(params["temperature"])).mean((1, 2))


@function({"a": (2, 2), "b": (2, 3)}, loose=["a", "b"])
def product_of_kernels(params, frozen, images):
    return jnp.tanh(images @ (params["a"] @ params["b"])).mean((1, 2))


@function({"slope": (), "kernel": (2, 4)})
def parametric_relu(params, frozen, images):
    y = images @ params["kernel"]
    return jnp.where(y > 0, y, params["slope"] * y).mean((1, 2))


# Sharing


@function({"kernel": (2, 4), "bias": (4,)})
def tied_transposed(params, frozen, images):
    hidden = jnp.tanh(images @ params["kernel"] + params["bias"])
    return (hidden @ params["kernel"].T).mean((1, 2))


@module()
def called_twice(self, x):
    shared = nn.Dense(2)
    return jnp.tanh(shared(jnp.tanh(shared(x)))).mean((1, 2))


@module()
def conv_on_two_scales(self, x):
    shared = nn.Conv(2, (2, 2))
    return jnp.tanh(shared(x)).mean((1, 2)) + jnp.tanh(shared(x[:, ::2, ::2])).mean((1, 2))


@function({"kernel": (2, 2), "first": (2,), "second": (2,)})
def shared_kernel_with_two_biases(params, frozen, images):
    x = jnp.tanh(images @ params["kernel"] + params["first"])
    return jnp.tanh(x @ params["kernel"] + params["second"]).mean((1, 2))


@function({"kernel": (2, 2), "bias": (2,)})
def bias_used_again(params, frozen, images):
    x = jnp.tanh(images @ params["kernel"] + params["bias"])
    return (x * params["bias"]).mean((1, 2))


@function({"weight": (2, 2)})
def penalised_by_its_own_norm(params, frozen, images):
    return (images @ params["weight"]).mean((1, 2)) / jnp.sqrt(1 + jnp.sum(params["weight"] ** 2))


CASES["penalised_by_its_own_norm"] = functools.partial(
    lambda case: dataclasses.replace(case(), loose=frozenset({"weight"})), CASES["penalised_by_its_own_norm"]
)


# Transforms of linen


class Block(nn.Module):
    """A residual layer."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + jnp.tanh(nn.Dense(2)(nn.LayerNorm()(x))), None


@module()
def scanned(self, x):
    x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)
    return x.mean((1, 2))


@module()
def scanned_remat(self, x):
    block = nn.remat(Block, prevent_cse=False)
    x, _ = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x, None)
    return x.mean((1, 2))


@module()
def scanned_shared(self, x):
    x, _ = nn.scan(Block, variable_broadcast="params", split_rngs={"params": False}, length=2)()(x, None)
    return x.mean((1, 2))


@module()
def heads_by_vmap(self, x):
    heads = nn.vmap(
        nn.Dense, in_axes=None, out_axes=1, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    return jnp.tanh(heads(2)(x)).mean((2, 3)).reshape(x.shape[0], -1)


@module()
def heads_by_vmap_of_parts(self, x):
    heads = nn.vmap(nn.Dense, in_axes=3, out_axes=3, variable_axes={"params": 0}, split_rngs={"params": True})
    return jnp.tanh(heads(2)(x[..., None])).mean((1, 2)).reshape(x.shape[0], -1)


@module()
def remat(self, x):
    return nn.remat(Block)()(x)[0].mean((1, 2))


@module()
def jitted(self, x):
    return nn.jit(Block)()(x)[0].mean((1, 2))


@function({"a": (2, 3), "b": (2, 3)}, loose=["a", "b"])
def conditional(params, frozen, images):
    dark = jnp.mean(images) < 0.5
    return jnp.tanh(lax.cond(dark, lambda x: x @ params["a"], lambda x: 2 * x @ params["b"], images)).mean((1, 2))


@function({"kernel": (2, 2)})
def fixed_loop(params, frozen, images):
    return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params["kernel"]), images).mean((1, 2))


@function({"kernel": (2, 2), "start": (2,)}, loose=["kernel", "start"])
def recurrent(params, frozen, images):
    rows = images.reshape(images.shape[0], 16, 2)[:, :4]

    def step(state, row):
        state = jnp.tanh(row + state @ params["kernel"])
        return state, state

    start = jnp.broadcast_to(params["start"], (images.shape[0], 2))
    return lax.scan(step, start, rows.swapaxes(0, 1), reverse=True)[1].mean(0)


@function({"kernel": (2, 2)})
def recurrent_from_zero(params, frozen, images):
    rows = images.reshape(images.shape[0], 16, 2)[:, :3].swapaxes(0, 1)
    start = jnp.zeros((images.shape[0], 2))
    return lax.scan(lambda state, row: (jnp.tanh(row + state @ params["kernel"]), None), start, rows)[0]


# Axes


@module()
def windows(self, x):
    n = x.shape[0]
    parts = x.reshape(n, 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(n * 4, 4, 2)
    y = nn.MultiHeadDotProductAttention(1)(parts)
    return jnp.tanh(nn.Dense(3)(y)).reshape(n, -1, 3).mean(1)


@module()
def time_major(self, x):
    y = x.reshape(x.shape[0], 16, 2).swapaxes(0, 1)[:5]
    return jnp.tanh(nn.LayerNorm()(nn.Dense(3)(y))).mean(0)


@module()
def token_mixing(self, x):
    y = x.reshape(x.shape[0], 16, 2).swapaxes(1, 2)
    return jnp.tanh(nn.Dense(3)(y)).mean(1)


@module()
def gated(self, x):
    a, b = jnp.split(nn.Dense(6)(x), 2, axis=-1)
    return (a * nn.silu(b)).mean((1, 2))


@module()
def squeeze_and_excite(self, x):
    y = nn.Conv(3, (2, 2))(x)
    return (y * nn.sigmoid(nn.Dense(3)(y.mean((1, 2), keepdims=True)))).mean((1, 2))


# 16 bits: both sides round, each in its own order


@module(tolerance=0.05)
def half_precision(self, x):
    x = nn.Conv(4, (2, 2), dtype=jnp.bfloat16)(x)
    x = nn.BatchNorm(use_running_average=True, dtype=jnp.bfloat16)(x)
    return nn.Dense(3, dtype=jnp.bfloat16)(nn.relu(x).mean((1, 2))).astype(jnp.float32)


# Trees of other kinds


@function([(2, 3), [(3,), (3, 2)]])
def parameters_in_lists(params, frozen, images):
    return (jnp.tanh(images @ params[0] + params[1][0]) @ params[1][1]).mean((1, 2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    kernel: jax.Array
    bias: jax.Array


@function({"layers": (Affine((2, 3), (3,)), Affine((3, 2), (2,)))})
def parameters_in_dataclasses(params, frozen, images):
    for layer in params["layers"]:
        images = jnp.tanh(images @ layer.kernel + layer.bias)
    return images.mean((1, 2))


class Nnx(nnx.Module):
    """Convolution, norms and attention of nnx."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (2, 2), rngs=rngs)
        self.batch = nnx.BatchNorm(4, rngs=rngs, use_running_average=True)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False)
        self.token = nnx.Param(jnp.zeros((4,)))
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x):
        x = jnp.tanh(self.batch(self.conv(x))).reshape(x.shape[0], 16, 4)[:, :5] + self.token
        x = x + self.attention(self.norm(x))
        return self.layers[1](jnp.tanh(self.layers[0](x))).mean(1)


def _nnx():
    graph, params, others = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)

    def network(params, frozen, images):
        del frozen
        return nnx.merge(graph, params, others)(images)

    return Case(network, drawn(params), {})


CASES["nnx_modules"] = _nnx
